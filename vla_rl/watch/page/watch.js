// The live page: asks the server for what it lacks, and draws it. Texts are set as text, never as HTML.

import { Chart, element, swatch } from "./chart.js";
import { ABSENT, age, bytes, duration, number, percent } from "./format.js";

const LIVE_MS = 2000; // while a run goes on
const STILL_MS = 10000; // otherwise: it may be resumed
const FACTS = [
  ["success", ["rollout/success_rate", "supervised/success_rate"], percent],
  ["return", ["rollout/return"], number],
  ["success, evaluated", ["evaluation/success_rate"], percent],
  ["policy lag, mean", ["policy_lag/mean"], number],
  ["policy lag, P95", ["policy_lag/p95"], number],
  ["|log ρ|, P95", ["ratio/abs_log_p95"], number],
  ["learner waits", ["perf/learner_wait_fraction"], percent],
  ["envs wait", ["perf/env_wait_fraction"], percent],
  ["held back", ["perf/env_held_back_fraction"], percent],
  ["loss", ["supervised/loss"], number],
  ["right tokens", ["supervised/accuracy"], percent],
];

const byId = (id) => document.getElementById(id);
const runs = []; // name, isShown, state, curves
const charts = []; // chart, figure, panel
let page = null;
let timer = 0;
let isPaused = false;

async function ask(path) {
  const answer = await fetch(`api/${path}`, { signal: AbortSignal.timeout(20000) });
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error);
  return value;
}

async function begin() {
  page = await ask("page");
  const many = page.runs.length > 1;
  byId("title").textContent = many ? `${page.runs.length} runs` : page.runs[0];
  for (const [index, name] of page.runs.entries()) {
    runs.push({ index, name, isShown: true, state: null, curves: emptyCurves(), card: null });
  }
  for (const [name, label] of Object.entries(page.clocks)) byId("clock").append(new Option(label, name));
  makeFigures();
  makeGlossary();
  listen();
  await refresh();
}

function emptyCurves() {
  return { generation: "", stride: 1, clocks: {}, metrics: {}, length: 0 };
}

// Put the points that the server sent in place of those from `first` on.
function extend(curves, sent) {
  if (sent.generation !== curves.generation) Object.assign(curves, emptyCurves(), { generation: sent.generation, stride: sent.stride });
  const replace = (list, values) => {
    while (list.length < sent.first) list.push(null); // a metric that had no value before
    list.splice(sent.first, list.length, ...values);
    return list;
  };
  for (const [name, values] of Object.entries(sent.clocks)) curves.clocks[name] = replace(curves.clocks[name] ?? [], values);
  for (const [name, parts] of Object.entries(sent.metrics)) {
    const metric = (curves.metrics[name] ??= {});
    for (const [part, values] of Object.entries(parts)) metric[part] = replace(metric[part] ?? [], values);
  }
  curves.length = sent.first + sent.clocks.seconds.length;
}

async function refresh() {
  clearTimeout(timer);
  let wait = LIVE_MS;
  try {
    const states = await ask("runs");
    const sent = await Promise.all(runs.map(({ index, curves }) => ask(`curves?run=${index}&generation=${curves.generation}&points=${curves.length}`)));
    for (const run of runs) {
      run.state = states[run.index];
      extend(run.curves, sent[run.index]);
    }
    draw();
    await showLog();
    const isReading = states.some((state) => state.share_read < 1);
    if (isReading) wait = 50;
    else if (!states.some((state) => state.state === "running")) wait = STILL_MS;
    tell(isReading ? `Reading log points: ${percent(Math.min(...states.map((state) => state.share_read)))} …` : told(wait), false);
  } catch (error) {
    tell(`No answer from vla-rl watch (${error.message}): the page shows the last state. Start it again with the same command.`, true);
  }
  if (!isPaused && !document.hidden) timer = setTimeout(refresh, wait);
}

function told(wait) {
  const time = new Date().toLocaleTimeString([], { hourCycle: "h23" });
  return isPaused ? `Paused at ${time}.` : `Read at ${time}, again every ${wait / 1000} s.`;
}

function tell(text, isLost) {
  const status = byId("status");
  status.classList.toggle("lost", isLost);
  if (status.textContent !== text) status.textContent = text;
}

function draw() {
  for (const run of runs) drawCard(run);
  const first = runs[0].state.latest["rollout/success_rate"];
  document.title = `${runs.length === 1 && first !== undefined ? `${percent(first)} · ` : ""}${byId("title").textContent} – vla-rl`;
  drawCharts();
  drawAlarms();
  list("evaluations", eachRun((state) => state.evaluations));
  list("notes", eachRun((state) => state.notes));
  drawVideos();
  drawLogFiles();
}

// Texts of all shown runs, with the run's name in front where there are several.
function eachRun(take) {
  return shown().flatMap((run) => take(run.state).map((text) => (runs.length > 1 ? `${run.name}: ${text}` : text)));
}

function shown() {
  return runs.filter((run) => run.isShown);
}

function list(id, texts) {
  byId(id).hidden = !texts.length;
  fill(byId(id).querySelector("ul"), texts, (text) => element("li", {}, text));
}

// Make the children anew only where they changed, so that a selection or a video that plays is left alone.
function fill(parent, items, make) {
  const key = JSON.stringify(items);
  if (parent.dataset.key === key) return;
  parent.dataset.key = key;
  parent.replaceChildren(...items.map(make));
}

function makeCard(run) {
  const heading = element("h2", {});
  if (runs.length > 1) {
    const box = element("input", { type: "checkbox", checked: "" });
    box.addEventListener("change", () => {
      run.isShown = box.checked;
      draw();
    });
    heading.append(element("label", {}, box, swatch(run.index, Math.floor(run.index / 6)), run.name));
  } else {
    heading.append("State");
  }
  const parts = {
    state: element("span", { class: "state" }),
    folder: element("p", { class: "folder note" }),
    reason: element("p", { class: "reason" }),
    progress: element("progress", { "aria-label": "optimizer steps of the budget", max: 1 }),
    extent: element("p", { class: "extent" }),
    facts: element("dl", { class: "facts" }),
  };
  run.card = { ...parts, body: element("article", { class: "card" }, element("div", { class: "head" }, heading, parts.state)) };
  run.card.body.append(parts.folder, parts.reason, parts.progress, parts.extent, parts.facts);
  byId("cards").append(run.card.body);
}

function drawCard(run) {
  if (!run.card) makeCard(run);
  const { card, state } = run;
  const { optimizer_steps: done, env_steps: steps, episodes, seconds } = state.clocks;
  card.state.textContent = state.state;
  card.state.className = `state ${state.state}`;
  const sign = state.age === null ? "nothing written yet" : `last sign ${age(state.age)}`;
  card.folder.textContent = `${state.folder} · ${sign}`;
  card.reason.textContent = state.reason;
  card.reason.hidden = !state.reason;
  card.progress.hidden = !state.budget;
  card.progress.value = state.budget ? Math.min(1, done / state.budget) : 0;
  const left = state.state === "running" && state.seconds_left !== null ? `, about ${duration(state.seconds_left)} left` : "";
  const budget = state.budget ? ` of ${number(state.budget)}` : "";
  card.extent.textContent = `${number(done)}${budget} optimizer steps, ${number(episodes)} episodes, ${number(steps)} env steps in ${duration(seconds)}${left}`;
  const facts = FACTS.map(([label, names, format]) => [label, names.map((name) => state.latest[name]).find((value) => value !== undefined), format]);
  const known = facts.filter(([, value]) => value !== undefined).map(([label, value, format]) => [label, format(value)]);
  fill(card.facts, known, ([label, text]) => element("div", {}, element("dt", {}, label), element("dd", {}, text)));
}

function makeFigures() {
  for (const figure of page.figures) {
    const panels = element("div", { class: "panels" });
    const section = element("section", {}, element("h2", {}, figure.title), panels);
    byId("figures").append(section);
    for (const panel of figure.panels) {
      const chart = new Chart(panel, pointAt);
      panels.append(chart.figure);
      charts.push({ chart, panel, figure, section });
    }
  }
  const watcher = new ResizeObserver(() => charts.forEach(({ chart }) => chart.draw()));
  watcher.observe(byId("figures"));
}

function drawCharts() {
  const smoothing = Number(byId("smoothing").value);
  for (const { chart, panel, figure, section } of charts) {
    const clock = byId("clock").value || figure.over;
    const series = shown().flatMap((run) => seriesOf(run, panel, clock));
    section.hidden = false;
    chart.show(series, { clock, clockLabel: page.clocks[clock], smoothing });
  }
  for (const { section } of charts) section.hidden = !section.querySelector("figure:not([hidden])");
  const isEmpty = charts.every(({ section }) => section.hidden);
  byId("empty").hidden = !isEmpty;
  byId("controls").hidden = isEmpty;
  charts.forEach(({ chart }) => chart.draw());
}

// One run: a colour for each metric. Several: a colour for each run, a dash pattern for each metric.
function seriesOf(run, panel, clock) {
  const many = runs.length > 1;
  return panel.metrics.flatMap((name, place) => {
    const metric = run.curves.metrics[name];
    if (!metric) return [];
    const label = panel.metrics.length > 1 ? panel.labels[place].replaceAll("_", " ").replace(/ fraction$/, "") : "";
    return [{
      run: many ? run.name : "",
      label,
      color: many ? run.index : place,
      dash: many ? place + Math.floor(run.index / 6) : 0,
      x: run.curves.clocks[clock],
      mean: metric.mean,
      low: metric.low ?? null,
      high: metric.high ?? null,
    }];
  });
}

// All charts over one clock show their values at the same place.
function pointAt(clock, x) {
  for (const { chart } of charts) chart.point_at(chart.clock === clock ? x : null);
}

function drawAlarms() {
  const many = runs.length > 1;
  const alarms = shown().flatMap((run) => run.state.alarms.map((alarm) => ({ ...alarm, run: many ? `${run.name}, ` : "" })));
  byId("alarms").hidden = !alarms.length;
  fill(byId("alarms").querySelector("ul"), alarms, (alarm) => {
    const where = alarm.optimizer_step === null ? "" : `${alarm.run}optimizer step ${number(alarm.optimizer_step)}: `;
    return element("li", {}, element("b", {}, `${where}${alarm.name.replaceAll("_", " ")}`), ` – ${alarm.sentence}`);
  });
}

function filesOf(kind) {
  return shown().flatMap((run) => run.state[kind].map((file) => ({
    address: `run=${run.index}&file=${file.file}`,
    title: runs.length > 1 ? `${run.name}: ${file.name}` : file.name,
    ...file,
  })));
}

function drawVideos() {
  const videos = filesOf("videos").sort((first, second) => first.age - second.age).slice(0, 12);
  byId("videos").hidden = !videos.length;
  const items = videos.map(({ address, title, bytes: size }) => ({ address, title: `${title} (${bytes(size)})` }));
  fill(document.querySelector(".videos"), items, ({ address, title }) => {
    const video = element("video", { controls: "", preload: "metadata", src: `api/video?${address}`, "aria-label": title });
    video.muted = true;
    return element("figure", {}, video, element("p", { class: "note" }, title));
  });
}

function drawLogFiles() {
  const select = byId("log-file");
  const before = select.value;
  const rank = ({ title }) => (title.endsWith("learner.log") ? 0 : 1);
  const files = filesOf("logs").sort((first, second) => rank(first) - rank(second));
  byId("logs").hidden = !files.length;
  fill(select, files.map(({ address, title }) => ({ address, title })), ({ address, title }) => new Option(title, address));
  const wanted = files.find(({ address }) => address === before) ?? files.find((file) => file.bytes > 0) ?? files[0];
  if (wanted) select.value = wanted.address;
}

async function showLog() {
  const address = byId("log-file").value;
  if (!address || byId("logs").hidden) return;
  const log = byId("log");
  const { text } = await ask(`log?${address}`);
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 30;
  const isNew = log.dataset.address !== address;
  if (log.textContent !== (text || "(empty)")) log.textContent = text || "(empty)";
  log.dataset.address = address;
  if (isAtEnd || isNew) log.scrollTop = log.scrollHeight;
}

function makeGlossary() {
  const rows = Object.entries(page.metrics).map(([name, { unit, meaning }]) => [name, unit, meaning]);
  byId("glossary").querySelector("tbody").append(...rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell)))));
}

function listen() {
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("clock").addEventListener("change", drawCharts);
  byId("smoothing").addEventListener("input", () => {
    const weight = Number(byId("smoothing").value);
    byId("smoothing-value").textContent = weight ? weight.toFixed(2) : "none";
    drawCharts();
  });
  byId("log-file").addEventListener("change", showLog);
  byId("pause").addEventListener("click", () => {
    isPaused = !isPaused;
    byId("pause").setAttribute("aria-pressed", String(isPaused));
    byId("pause").textContent = isPaused ? "Go on" : "Pause";
    if (isPaused) {
      clearTimeout(timer);
      tell(told(0), false);
    } else {
      refresh();
    }
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && !isPaused) refresh();
  });
}

begin().catch((error) => tell(`The page cannot be drawn: ${error.message}`, true));
