"use strict";
const $ = (id) => document.getElementById(id);
const messages = [];
let models = [], running = null;

function make(tag, text = "", kind = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = kind;
  return element;
}

async function send(path, body, signal) {
  const key = $("key").value;
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: "Bearer " + key }) };
  const answer = await fetch(path, { headers, signal, ...(body && { method: "POST", body: JSON.stringify(body) }) });
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  return answer;
}

// -- which jobs there are --

async function listModels() {
  try {
    models = (await (await send("v1/models")).json()).data;
  } catch (problem) {
    $("none").hidden = false;
    $("none").textContent = problem.message;
    $("options").open = true;
    return;
  }
  $("model").replaceChildren(...models.map((model) => new Option(model.id)));
  showJobs();
}

function showJobs() {
  const model = models.find((item) => item.id === $("model").value);
  // A classifier decides between its own labels, which its job "Classify" shows: it needs no list of choices.
  const offers = ({ path, unless }) => model.endpoints.includes(path) && !model.endpoints.includes(unless);
  const offered = [...document.querySelectorAll("section")].filter((job) => offers(job.dataset));
  $("jobs").replaceChildren(...offered.map((job) => {
    const tab = make("button", job.dataset.name);
    tab.type = "button";
    tab.role = "tab";
    tab.addEventListener("click", () => show(job, tab));
    return tab;
  }));
  $("about").textContent = `up to ${model.max_model_len.toLocaleString("en")} tokens`;
  $("none").hidden = offered.length > 0;
  $("none").textContent = `This page has no job for ${model.task}; see /v1/models for the model's endpoints.`;
  show(offered[0], $("jobs").firstChild);
}

function show(job, tab) {
  for (const other of document.querySelectorAll("section")) other.hidden = other !== job;
  for (const other of $("jobs").children) other.setAttribute("aria-selected", other === tab);
  $("log").hidden = $("form").hidden = $("options").hidden = job !== $("chat");
  if ($("key").value === "" && job === undefined) $("options").hidden = false;
}

// -- chat --

function add(kind, text) {
  const element = make("div", text, kind);
  $("log").append(element);
  $("log").scrollTop = $("log").scrollHeight;
  return element;
}

async function* events(body) {
  let held = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue;
      if (part === "data: [DONE]") return;
      yield JSON.parse(part.slice(6));
    }
  }
}

async function ask(text) {
  messages.push({ role: "user", content: text });
  add("turn user", text);
  const body = { model: $("model").value, messages, stream: true, stream_options: { include_usage: true } };
  for (const name of ["temperature", "top_p", "top_k", "max_tokens", "seed"])
    if ($(name).value !== "") body[name] = Number($(name).value);
  running = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  const began = performance.now();
  let first = null, usage = null, content = "", failed = null;
  const reasoning = add("turn assistant reasoning", ""), shown = add("turn assistant", "");
  try {
    const answer = await send("v1/chat/completions", body, running.signal);
    for await (const event of events(answer.body)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      const delta = event.choices[0]?.delta ?? {};
      const thought = delta.reasoning ?? "", piece = delta.content ?? "";
      if (!thought && !piece) continue;
      first ??= performance.now();
      reasoning.textContent += thought;
      content += piece;
      shown.textContent = content;
      $("log").scrollTop = $("log").scrollHeight;
    }
  } catch (problem) {
    if (problem.name !== "AbortError") failed = problem;
  }
  if (content) messages.push({ role: "assistant", content }); else { messages.pop(); shown.remove(); }
  if (failed) add("turn error", failed.message);
  if (first !== null) add("figures", figures(first - began, performance.now() - first, usage));
  running = null;
  $("send").disabled = false;
  $("stop").disabled = true;
  $("text").focus();
}

function figures(toFirst, rest, usage) {
  const known = usage && usage.completion_tokens > 1;
  const speed = known ? ((usage.completion_tokens - 1) / rest * 1e3).toFixed(1) + " tokens/s, " : usage ? "" : "stopped, ";
  const counts = usage ? `, ${usage.prompt_tokens} tokens in (${usage.prompt_tokens_details.cached_tokens} cached), ${usage.completion_tokens} out` : "";
  return `${speed}first token after ${toFirst.toFixed(0)} ms${counts}`;
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || running) return;
  $("text").value = "";
  ask(text);
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("form").requestSubmit(); }
});
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => { running?.abort(); messages.length = 0; $("log").replaceChildren(); });

// -- jobs that answer at once: what is sent, and how the answer is shown --

const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

function job(id, request, rows) {
  const form = $(id).querySelector("form"), result = $(id).querySelector(".result"), about = form.querySelector(".figures");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const began = performance.now();
    try {
      const body = { model: $("model").value, ...request(new FormData(form)) };
      const answer = await (await send($(id).dataset.path.slice(1), body)).json();
      const tokens = answer.usage.prompt_tokens ?? answer.usage.input_tokens;
      about.textContent = `${tokens} tokens in ${(performance.now() - began).toFixed(0)} ms`;
      const table = make("table");
      table.append(...rows(answer, body).map((cells) => { const row = make("tr"); row.append(...cells); return row; }));
      result.replaceChildren(table);
    } catch (problem) {
      result.replaceChildren(make("div", problem.message, "turn error"));
    }
  });
}

function bar(share) {
  const cell = make("td", "", "wide"), filled = make("div", "", "bar");
  filled.style.width = `${(100 * share).toFixed(1)}%`;
  cell.append(filled);
  return cell;
}

job("decide", (form) => ({ input: form.get("input"), questions: [{ type: "choice", instructions: form.get("question"),
  choices: lines(form.get("choices")).map((value) => ({ value })) }] }),
  (answer) => bars(answer.answers[0].probabilities.toSorted((one, other) => other.probability - one.probability)
    .map(({ value, probability }) => [value, probability])));

function bars(items) {
  return items.map(([name, share]) => [make("th", name), bar(share), make("td", (100 * share).toFixed(1) + " %")]);
}

job("classify", (form) => ({ input: lines(form.get("texts")) }), (answer, body) => answer.data.map((item) => {
  const best = Math.max(...item.probs);
  return [make("th", body.input[item.index]), make("td", item.label), bar(best), make("td", (100 * best).toFixed(1) + " %")];
}));

job("rank", (form) => ({ query: form.get("query"), documents: lines(form.get("documents")) }),
  (answer) => answer.results.map((item) => [make("th", item.document.text), make("td", item.relevance_score.toFixed(3))]));

job("find", (form) => ({ question: form.get("question"), context: form.get("context") }),
  (answer) => [[make("th", answer.text || "no answer"), make("td", (100 * answer.score).toFixed(1) + " %")]]);

job("tag", (form) => ({ input: form.get("text") }), (answer) => answer.data[0].spans.length
  ? answer.data[0].spans.map((span) => [make("th", span.text), make("td", span.label), make("td", (100 * span.score).toFixed(1) + " %")])
  : [[make("th", "nothing is tagged")]]);

job("embed", (form) => ({ input: lines(form.get("texts")) }), (answer, body) => {
  const vectors = answer.data.map((item) => item.embedding);
  const dot = (one, other) => one.reduce((sum, value, place) => sum + value * other[place], 0);
  const numbers = vectors.map((_, place) => make("th", place + 1, "number"));
  return [[make("th"), ...numbers], ...vectors.map((one, row) => [make("th", `${row + 1}  ${body.input[row]}`), ...vectors.map((other) => {
    const cosine = dot(one, other) / Math.sqrt(dot(one, one) * dot(other, other)), cell = make("td", cosine.toFixed(3));
    cell.style.background = `color-mix(in srgb, var(--accent) ${Math.max(0, 60 * cosine).toFixed(0)}%, transparent)`;
    return cell;
  })])];
});

$("model").addEventListener("change", showJobs);
$("key").addEventListener("change", () => { $("none").hidden = true; listModels(); });
listModels();
