// Charts from the numbers in data-chart. Colours and dashes come from the sheet, so both themes and print are right.
const drawn = new Map();

function looks(figure) {
  return [...figure.querySelectorAll(".legend line")].map((line) => {
    const style = getComputedStyle(line);
    return { stroke: style.stroke, dash: style.strokeDasharray === "none" ? [] : style.strokeDasharray.split(",").map(parseFloat) };
  });
}

function worded(value, told) {
  if (value === null || value === undefined) return "–";
  return (told.whole ? Math.round(value) : value.toFixed(1)) + told.unit;
}

function draw(figure) {
  const plot = figure.querySelector(".plot");
  const told = JSON.parse(figure.dataset.chart);
  const labels = [...figure.querySelectorAll(".legend li")].map((one) => one.textContent.trim());
  const readout = figure.querySelector(".readout");
  const style = getComputedStyle(figure);
  const ink = getComputedStyle(readout).color;
  const grid = { stroke: style.borderTopColor, width: 1 };
  const axis = { stroke: ink, grid, ticks: grid, font: "12px " + style.fontFamily };
  const highest = Math.max(0, ...told.values.flat().filter((value) => value !== null));
  drawn.get(plot)?.destroy();
  const chart = new uPlot({
    width: plot.clientWidth, height: 190, padding: [8, 8, 0, 0],
    tzDate: (moment) => uPlot.tzDate(new Date(moment * 1000), "UTC"),
    legend: { show: false },
    cursor: { y: false, points: { size: 7 }, drag: { x: false, y: false } },
    scales: { y: { range: [0, told.whole ? Math.max(4, Math.ceil(highest * 1.1)) : Math.max(10, highest * 1.15)] } },
    axes: [{ ...axis, space: 70, size: 30, values: "{HH}:{mm}", ...days(told.times) },
      { ...axis, size: 46, incrs: told.whole ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000, 100000] : undefined }],
    series: [{}, ...looks(figure).map((look, at) => ({ label: labels[at], width: 2, points: { show: false }, spanGaps: false,
      paths: told.steps ? uPlot.paths.stepped({ align: 1 }) : undefined, ...look }))],
    hooks: { setCursor: [(self) => {
      const at = self.cursor.idx;
      readout.textContent = at === null || at === undefined ? "" :
        new Date(told.times[at] * 1000).toISOString().slice(0, 16).replace("T", " ") + " UTC: " +
        labels.map((label, line) => label + " " + worded(told.values[line][at], told)).join(", ");
    }] },
  }, [told.times, ...told.values], plot);
  drawn.set(plot, chart);
}

function days(times) {
  const long = times.at(-1) - times[0] > 2 * 86400;
  return long ? { values: "{D} {MMM}", incrs: [86400, 2 * 86400, 7 * 86400] } : {};
}

function drawAll() {
  for (const plot of drawn.keys()) if (!plot.isConnected) { drawn.get(plot).destroy(); drawn.delete(plot); }
  document.querySelectorAll("figure[data-chart]").forEach(draw);
}

let waiting;
addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(drawAll, 120); });
addEventListener("themechange", drawAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
document.addEventListener("htmx:afterSettle", drawAll);
drawAll();
