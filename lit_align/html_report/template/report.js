"use strict";
(() => {
  const read = (id) => document.getElementById(id).textContent;
  const figures = JSON.parse(read("figures"));
  const rows = JSON.parse(read("rows"));
  const inDark = JSON.parse(read("dark"));
  const root = document.documentElement;
  const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
  const PAGE = 10;
  const PRINTED = { full: 690, half: 335 };
  let printing = false;
  const remember = (key, value) => { try { sessionStorage.setItem(key, value); } catch { /* a page from disk may have none */ } };
  const recall = (key) => { try { return sessionStorage.getItem(key); } catch { return null; } };

  // Colours: figures hold those of the light page.
  const isDark = () => !printing && (root.dataset.theme || (systemDark.matches ? "dark" : "light")) === "dark";
  const inTheme = (figure) => {
    if (!isDark()) return figure;
    return JSON.parse(JSON.stringify(figure), (_, value) => (typeof value === "string" ? inDark[value] ?? value : value));
  };

  // Figures are drawn one after another, those that can be seen first.
  const drawn = new Set();
  const failed = [];
  const plots = [...document.querySelectorAll(".plot")];
  const isHidden = (plot) => plot.closest("details:not([open])") !== null;
  const draw = (plot) => {
    const { data, layout } = inTheme(figures[plot.dataset.figure]);
    const hover = getComputedStyle(root);
    const look = {
      ...layout,
      autosize: !printing,
      font: { ...layout.font, family: getComputedStyle(document.body).fontFamily },
      hoverlabel: {
        bgcolor: hover.getPropertyValue("--raised").trim(),
        bordercolor: hover.getPropertyValue("--line").trim(),
        font: { size: 12, color: hover.getPropertyValue("--ink").trim() },
      },
    };
    if (printing) look.width = plot.closest(".panels") ? PRINTED.half : PRINTED.full;
    try {
      Plotly.react(plot, data, look, { responsive: true, displayModeBar: false });
      if (!drawn.has(plot)) {
        drawn.add(plot);
        plot.on("plotly_relayout", (change) => zoomAll(plot, change));
      }
    } catch (error) {
      failed.push(`${plot.dataset.figure}: ${error}`);
      console.error(error);
    }
  };
  const drawNext = () => {
    const next = plots.find((plot) => !drawn.has(plot) && !isHidden(plot) && !failed.some((f) => f.startsWith(plot.dataset.figure)));
    if (next) {
      draw(next);
      setTimeout(drawNext);
    } else {
      root.dataset.drawn = String(drawn.size);
      root.dataset.milliseconds ??= String(Math.round(performance.now()));
    }
  };
  const drawAll = () => plots.filter((plot) => !isHidden(plot)).forEach(draw);
  document.querySelectorAll("details").forEach((details) => details.addEventListener("toggle", () => details.open && drawNext()));

  // A zoom into steps goes to all charts of training of the same run.
  let zooming = false;
  const zoomAll = (plot, change) => {
    const group = plot.closest(".panels:not(.three)");
    const reset = change["xaxis.autorange"];
    const range = change["xaxis.range"] ?? [change["xaxis.range[0]"], change["xaxis.range[1]"]];
    if (zooming || group === null || !(reset || range[0] !== undefined)) return;
    zooming = true;
    const others = [...group.querySelectorAll(".plot")].filter((other) => other !== plot && drawn.has(other));
    const update = reset ? { "xaxis.autorange": true } : { "xaxis.range": [...range] };
    Promise.all(others.map((other) => Plotly.relayout(other, update))).finally(() => { zooming = false; });
  };

  // Light or dark, and paper.
  const theme = document.getElementById("theme");
  const setTheme = (name) => {
    if (name) root.dataset.theme = name;
    theme.textContent = isDark() ? "Light" : "Dark";
    [...drawn].forEach(draw);
  };
  theme.addEventListener("click", () => {
    const name = isDark() ? "light" : "dark";
    remember("theme", name);
    setTheme(name);
  });
  systemDark.addEventListener("change", () => setTheme());
  let before;
  window.addEventListener("beforeprint", () => {
    if (printing) return;
    before = root.dataset.theme;
    printing = true;
    root.dataset.theme = "light";
    drawAll();
  });
  window.addEventListener("afterprint", () => {
    printing = false;
    if (before) root.dataset.theme = before;
    else delete root.dataset.theme;
    [...drawn].forEach((plot) => { draw(plot); Plotly.Plots.resize(plot); });
  });

  // Answers. What comes from data is only ever set as text.
  const element = (tag, name, text) => {
    const made = document.createElement(tag);
    made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const textOf = (tag, name, text) => {
    const made = element(tag, `text ${name}${text === "" ? " empty" : ""}`, text === "" ? "(empty)" : text);
    made.dir = "auto";
    return made;
  };
  const short = (score) => (score === null ? "" : Math.abs(score) >= 100 ? score.toFixed(0) : score.toFixed(2));
  const sideOf = (name, label, answers) => {
    const side = element("div", `side ${name}`);
    side.append(element("div", "who", label));
    for (const answer of answers) {
      const line = element("div", "answer");
      const text = textOf("span", "clamped", answer.text);
      text.addEventListener("click", () => getSelection().isCollapsed && text.classList.toggle("clamped"));
      line.append(element("span", "score", answer.score === null ? "-" : short(answer.score)), text);
      side.append(line);
    }
    return side;
  };
  const cardOf = (row, box) => {
    const card = element("article", "card");
    if (row.change !== null) card.append(element("span", "change", `${row.change > 0 ? "+" : ""}${short(row.change)}`));
    card.append(textOf("div", "prompt", row.prompt));
    const pair = element("div", "pair");
    pair.append(sideOf("off", box.dataset.left, row.off), sideOf("on", box.dataset.right, row.on));
    card.append(pair);
    return card;
  };
  const contains = (row, words) => {
    const text = [row.prompt, ...row.on.map((a) => a.text), ...row.off.map((a) => a.text)].join("\n").toLowerCase();
    return words.every((word) => text.includes(word));
  };
  const byChange = (sign) => (a, b) => (a.change === null) - (b.change === null) || sign * (b.change - a.change);
  document.querySelectorAll(".answers").forEach((box) => {
    const all = rows[Number(box.dataset.run)][box.dataset.kind];
    const [steps, search, order] = [box.querySelector(".steps select"), box.querySelector("input"), box.querySelector(".order")];
    const [list, more, count] = [box.querySelector(".list"), box.querySelector(".more"), box.querySelector(".count")];
    const names = [...new Set(all.map((row) => row.step).filter((step) => step !== undefined))];
    if (names.length > 0) {
      for (const step of [...names, "all"]) steps.append(new Option(step, step));
      steps.value = String(names[names.length - 1]);
      box.querySelector(".steps").hidden = false;
    }
    let limit = PAGE;
    const show = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const ofStep = names.length === 0 || steps.value === "all" ? all : all.filter((row) => String(row.step) === steps.value);
      const found = ofStep.filter((row) => contains(row, words));
      if (order.value !== "data") found.sort(byChange(order.value === "up" ? 1 : -1));
      list.replaceChildren(...found.slice(0, limit).map((row) => cardOf(row, box)));
      count.textContent = `${found.length} of ${ofStep.length} prompts`;
      more.hidden = found.length <= limit;
    };
    const restart = () => { limit = PAGE; show(); };
    steps.addEventListener("change", restart);
    search.addEventListener("input", restart);
    order.addEventListener("change", restart);
    more.addEventListener("click", () => { limit += PAGE; show(); });
    show();
  });

  // A run under way: the page is made anew at each decision.
  const pause = document.getElementById("pause");
  if (pause) {
    const label = () => { pause.textContent = recall("paused") ? "Reload again" : "Pause reloading"; };
    pause.addEventListener("click", () => { remember("paused", recall("paused") ? "" : "yes"); label(); });
    label();
    setInterval(() => {
      const busy = document.hidden || ["INPUT", "SELECT"].includes(document.activeElement?.tagName);
      if (!recall("paused") && !busy) location.reload();
    }, 30000);
  }

  setTheme(recall("theme"));
  const jump = location.hash && document.querySelector(`details.run${CSS.escape(location.hash).replace(/^\\#/, "#")}`);
  if (jump) jump.open = true;
  document.querySelectorAll('#runs a').forEach((link) => link.addEventListener("click", () => {
    document.querySelector(link.getAttribute("href")).open = true;
  }));
  drawNext();
})();
