"use strict";
/* Draws each plot in the colours of the page, and anew when the page turns light or dark. */

(function () {
  const COLORS = 6;

  function css(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function colorOf(meta) {
    return meta.color === "muted" ? css("--muted") : css(`--c${meta.color % COLORS}`);
  }

  function colored(trace) {
    const color = colorOf(trace.meta);
    const made = { ...trace, marker: { ...trace.marker, color } };
    if (trace.line) made.line = { ...trace.line, color };
    if (trace.error_x) made.error_x = { ...trace.error_x, color };
    return made;
  }

  function axis(given, width) {
    return {
      gridcolor: css("--line"), linecolor: css("--line"), zerolinecolor: css("--line"),
      fixedrange: width < 500, ...given,
    };
  }

  function layout(given, width) {
    return {
      ...given,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--ink") },
      hoverlabel: { bgcolor: css("--raised"), font: { color: css("--ink") } },
      margin: { l: 8, r: 12, t: 8, b: 8 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      xaxis: axis(given.xaxis, width),
      yaxis: axis(given.yaxis, width),
    };
  }

  function draw(place) {
    const figure = dataOf(place.dataset.plot);
    const options = { responsive: true, displayModeBar: false };
    Plotly.react(
      place, figure.data.map(colored), layout(figure.layout, place.clientWidth), options);
  }

  const places = [...document.querySelectorAll("[data-plot]")];
  const drawAll = () => places.forEach(draw);
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
})();
