"""Results for a person: tables, figures, sheets."""
