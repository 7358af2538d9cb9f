"use strict";
/* What is drawn: the histogram of a feature's activations, and where in a picture it fires. */
(() => {
  const { el, svg } = explorer;
  const [WIDTH, HEIGHT] = [320, 150]; // of the histogram
  const [LEFT, RIGHT, ABOVE, BELOW] = [44, 4, 10, 24]; // its margins

  /* The middle activation, as exact as the bars are narrow. */
  function middle({ edges: [low, high], counts }) {
    const half = counts.reduce((sum, count) => sum + count, 0) / 2;
    let below = 0;
    for (const [place, count] of counts.entries()) {
      const share = place + (half - below) / count;
      if (count && below + count >= half) return low + ((high - low) * share) / counts.length;
      below += count;
    }
    return high;
  }

  /* What the bars tell, in a sentence. */
  function inWords(hist) {
    const text = explorer.activation;
    const total = explorer.count(hist.counts.reduce((sum, count) => sum + count, 0), "activation");
    const most = explorer.whole(Math.max(...hist.counts));
    const [low, high] = hist.edges;
    return (
      `${total} from ${text(low)} to ${text(high)}, half of them below ${text(middle(hist))}; ` +
      `the fullest of ${hist.counts.length} bars holds ${most}.`
    );
  }

  const label = (x, y, anchor, text) => svg("text", { x, y, "text-anchor": anchor, "aria-hidden": "true" }, text);

  function bars(counts, most) {
    const [width, tall] = [(WIDTH - LEFT - RIGHT) / counts.length, HEIGHT - BELOW - ABOVE];
    return counts.map((count, place) => {
      const height = (tall * count) / most;
      return svg("rect", { x: LEFT + place * width + 0.5, y: ABOVE + tall - height, width: width - 1, height });
    });
  }

  /* Bars of the non-zero activations; the sentence below says the same in words. */
  explorer.histogram = (hist) => {
    const most = Math.max(...hist.counts, 1);
    const [right, bottom] = [WIDTH - RIGHT, HEIGHT - BELOW];
    const drawing = svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-labelledby": "hist-title", class: "histogram" },
      svg("title", { id: "hist-title" }, "Histogram of activations above zero"),
      bars(hist.counts, most),
      svg("line", { x1: LEFT, x2: right, y1: bottom, y2: bottom }),
      label(LEFT, HEIGHT - 8, "start", explorer.activation(hist.edges[0])),
      label(right, HEIGHT - 8, "end", explorer.activation(hist.edges[1])),
      label(LEFT - 6, ABOVE + 8, "end", explorer.whole(most)),
      label(LEFT - 6, bottom, "end", "0"),
    );
    drawing.setAttribute("aria-describedby", "hist-words");
    return [drawing, el("p", { class: "legend", id: "hist-words" }, inWords(hist))];
  };

  /* The part of a square tile that the patches cover, in per cent: left, top, width, height. */
  function covered({ naturalWidth: width, naturalHeight: height }, crop) {
    const longer = Math.max(width, height, 1);
    const side = ((crop || 0) * Math.min(width, height)) / longer;
    const [across, down] = crop ? [side, side] : [width / longer, height / longer];
    return { left: 50 - 50 * across, top: 50 - 50 * down, width: 100 * across, height: 100 * down };
  }

  /* A transparent canvas over a picture, from nothing over red to yellow: pictures from disk may not be read back. */
  explorer.heat = ({ grid, crop }, image) => {
    const bytes = atob(grid);
    const side = Math.round(Math.sqrt(bytes.length));
    const canvas = el("canvas", { class: "heat", width: side, height: side, "aria-hidden": "true" });
    const pixels = new ImageData(side, side);
    for (let at = 0; at < side * side; at++) {
      const value = bytes.charCodeAt(at);
      pixels.data.set([255, Math.max(0, value - 64), 0, 0.75 * value], 4 * at);
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    for (const [name, value] of Object.entries(covered(image, crop))) canvas.style.setProperty(name, `${value}%`);
    return canvas;
  };
})();
