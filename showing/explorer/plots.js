"use strict";
/* What is drawn: the histogram of a feature's activations, and where in a picture it fires. */
(() => {
  const { el, svg } = explorer;
  const [WIDTH, HEIGHT, LEFT, BELOW] = [320, 150, 44, 24]; // of the histogram, and of its margins

  /* The middle activation, as exact as the bars are narrow. */
  function middle({ edges: [low, high], counts }) {
    const half = counts.reduce((sum, count) => sum + count, 0) / 2;
    let below = 0;
    for (const [place, count] of counts.entries()) {
      if (count && below + count >= half) return low + ((high - low) * (place + (half - below) / count)) / counts.length;
      below += count;
    }
    return high;
  }

  const label = (x, y, text, anchor) => svg("text", { x, y, "text-anchor": anchor, "aria-hidden": "true" }, text);

  /* Bars of the non-zero activations; the sentence below says the same in words. */
  explorer.histogram = (hist) => {
    const [low, high] = hist.edges;
    const most = Math.max(...hist.counts, 1);
    const total = hist.counts.reduce((sum, count) => sum + count, 0);
    const [inner, tall] = [WIDTH - LEFT - 4, HEIGHT - BELOW - 10];
    const bars = hist.counts.map((count, place) => {
      const height = (tall * count) / most;
      const width = inner / hist.counts.length;
      return svg("rect", { x: LEFT + place * width + 0.5, y: 10 + tall - height, width: width - 1, height });
    });
    const text = (value) => explorer.activation(value);
    const words = `${explorer.count(total, "activation")} from ${text(low)} to ${text(high)}, half of them below ${text(middle(hist))}; the fullest of ${hist.counts.length} bars holds ${explorer.whole(most)}.`;
    const drawing = svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-labelledby": "hist-title hist-words", class: "histogram" },
      svg("title", { id: "hist-title" }, "Histogram of activations above zero"),
      bars,
      svg("line", { x1: LEFT, x2: WIDTH - 4, y1: HEIGHT - BELOW, y2: HEIGHT - BELOW }),
      label(LEFT, HEIGHT - 8, text(low), "start"),
      label(WIDTH - 4, HEIGHT - 8, text(high), "end"),
      label(LEFT - 6, 18, explorer.whole(most), "end"),
      label(LEFT - 6, HEIGHT - BELOW, "0", "end"),
    );
    return [drawing, el("p", { class: "legend", id: "hist-words" }, words)];
  };

  /* The part of a square tile that the patches cover, in per cent: left, top, width, height. */
  function covered({ naturalWidth: width, naturalHeight: height }, crop) {
    const longer = Math.max(width, height, 1);
    const side = ((crop || 0) * Math.min(width, height)) / longer;
    const [across, down] = crop ? [side, side] : [width / longer, height / longer];
    return { left: 50 - 50 * across, top: 50 - 50 * down, width: 100 * across, height: 100 * down };
  }

  /* A transparent canvas over a picture: from nothing over red to yellow. Pictures from disk may not be read back. */
  explorer.heat = ({ grid, side, crop }, image) => {
    const canvas = el("canvas", { class: "heat", width: side, height: side, "aria-hidden": "true" });
    const pixels = new ImageData(side, side);
    const bytes = atob(grid);
    for (let at = 0; at < side * side; at++) {
      const value = bytes.charCodeAt(at) || 0;
      pixels.data.set([255, Math.max(0, value - 64), 0, 0.75 * value], 4 * at);
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    for (const [name, value] of Object.entries(covered(image, crop))) canvas.style.setProperty(name, `${value}%`);
    return canvas;
  };
})();
