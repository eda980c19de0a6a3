"use strict";
// Ask about a picture and watch: everything that is shown is made from the events of /v1/ask, as they come, and again
// from the same events when an earlier question is chosen.

const COLOURS = ["#c2410c", "#5f3dc4", "#0b7285", "#c2255c", "#2b8a3e", "#1864ab"];
const MOST_KEPT = 20;
const SIDE = 128; // pixels of a crop's longer side, shown
const $ = (id) => document.getElementById(id);
const colour = (step) => COLOURS[step % COLOURS.length];

let picture = null; // {file, url}: what would be asked about
let shown = null; // the record that is on the page: {picture, question, events: [[ms, event]]}
let running = null; // AbortController of the question that runs
let stream = null; // of the camera
const past = [];

function make(tag, parent, text = "", name = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  parent?.append(element);
  return element;
}

// -- the picture ---------------------------------------------------------------------------------------------

function choose(file) {
  if (!file) return;
  if (!file.type.startsWith("image/")) return fail(`${file.name || "That"} is no picture.`);
  fail("");
  cameraOff();
  picture = { file, url: URL.createObjectURL(file) };
  clear();
  present(picture);
  $("status").textContent = file.name ? `${file.name} is ready.` : "The picture is ready.";
}

function present(which) {
  $("picture").src = which.url;
  $("picture").hidden = false;
  $("empty").hidden = true;
  $("stage").classList.add("full");
}

async function cameraOn() {
  fail("");
  if (!navigator.mediaDevices) {
    return fail("This browser gives cameras only to pages of localhost or https.");
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (e) {
    return fail(`The camera can't be used: ${e.message}`);
  }
  clear();
  $("picture").hidden = $("empty").hidden = true;
  $("camera").srcObject = stream;
  $("camera").hidden = $("take").hidden = false;
  $("stage").classList.add("full");
  $("camera-switch").textContent = "Camera off";
  $("camera-switch").setAttribute("aria-pressed", "true");
}

function cameraOff() {
  if (!stream) return;
  for (const track of stream.getTracks()) track.stop();
  stream = $("camera").srcObject = null;
  $("camera").hidden = $("take").hidden = true;
  $("camera-switch").textContent = "Camera on";
  $("camera-switch").setAttribute("aria-pressed", "false");
  $("picture").hidden = !picture;
  $("empty").hidden = !!picture;
}

async function frame() {
  const video = $("camera");
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  const data = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
  return data && new File([data], "camera.jpg", { type: "image/jpeg" });
}

function place() {
  // the boxes lie on the picture, which may be smaller than its stage
  const image = $("picture");
  Object.assign($("boxes").style, {
    left: `${image.offsetLeft}px`,
    top: `${image.offsetTop}px`,
    width: `${image.offsetWidth}px`,
    height: `${image.offsetHeight}px`,
  });
}

// -- asking --------------------------------------------------------------------------------------------------

async function ask() {
  if (stream) choose(await frame());
  if (!picture) return fail("Choose a picture first.");
  const question = $("question").value.trim();
  if (!question) return fail("Write a question first.");
  const body = { image: await dataUrl(picture.file), question, stream: true };
  if ($("deadline").value) body.deadline = Number($("deadline").value);
  const record = { picture, question, events: [] };
  const began = performance.now();
  running = new AbortController();
  begin(record);
  busy(true);
  try {
    for await (const event of events(body, running.signal)) {
      const at = performance.now() - began;
      record.events.push([at, event]);
      if (shown === record) handle(event, at);
    }
  } catch (e) {
    const event = { type: "error", error: running.signal.aborted ? "It was stopped." : e.message };
    const at = performance.now() - began;
    record.events.push([at, event]);
    if (shown === record) handle(event, at);
  }
  running = null;
  busy(false);
  keep(record);
}

async function* events(body, signal) {
  const headers = { "Content-Type": "application/json" };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  let reply;
  try {
    reply = await fetch("/v1/ask", { method: "POST", headers, body: JSON.stringify(body), signal });
  } catch (e) {
    throw signal.aborted ? e : new Error("The server can't be reached.");
  }
  if (!reply.ok) {
    if (reply.status === 401) {
      $("access").open = true;
      $("key").focus();
    }
    const said = await reply.json().catch(() => ({}));
    throw new Error(said.error || `The server answered with status ${reply.status}.`);
  }
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("The connection ended before the answer.");
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function dataUrl(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });
}

function busy(now) {
  $("ask").disabled = now;
  $("stop").hidden = !now;
  for (const button of $("history").querySelectorAll("button")) button.disabled = now;
  $("right").setAttribute("aria-busy", String(now));
}

function fail(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

// -- showing -------------------------------------------------------------------------------------------------

let spans = []; // of time: {kind, from, to} in ms
let crops = new Set([0]); // images of the conversation that are cut from the picture

function clear() {
  shown = null;
  spans = [];
  crops = new Set([0]);
  for (const id of ["boxes", "notices", "steps", "line"]) $(id).replaceChildren();
  for (const id of ["usage", "times", "status"]) $(id).textContent = "";
  $("answer").textContent = "None yet.";
  $("answer").className = "soft";
}

function begin(record) {
  clear();
  fail("");
  shown = record;
  present(record.picture);
  place();
  $("status").textContent = "The picture is being read.";
  $("answer").textContent = "…";
  spans = [{ kind: "read", from: 0, to: 0 }];
}

function handle(event, at) {
  HANDLERS[event.type]?.(event, at);
  drawTime(at);
}

const HANDLERS = {
  notice(event) {
    make("li", $("notices"), event.text);
  },
  token(event, at) {
    enter("write", at);
    const text = stepOf(event.step).querySelector("pre");
    text.textContent += event.text;
    text.scrollTop = text.scrollHeight;
    $("status").textContent = `Step ${event.step + 1} is being written.`;
  },
  text(event) {
    const place = $("answer");
    place.textContent = (place.textContent === "…" ? "" : place.textContent) + event.text;
    place.className = "";
    $("status").textContent = "The answer is being written.";
  },
  box(event) {
    if (crops.has(event.image)) drawBox(event.step, event.region, "", false);
  },
  action(event, at) {
    enter("look", at);
    const { kind, region, image, label, text } = event.action;
    if (region && crops.has(image)) drawBox(event.step, region, label, true);
    const what = kind.replace("_", " ");
    const words = label || text;
    stepOf(event.step).querySelector("h3").textContent = `${event.step + 1}. ${what}${words ? `: ${words}` : ""}`;
    if (kind !== "answer") $("status").textContent = `Step ${event.step + 1}: ${what}.`;
  },
  observation(event, at) {
    enter("read", at);
    const { action, hits, error, text, shown: registered } = event.observation;
    const whole = crops.has(action.image);
    if (registered !== null && whole) crops.add(registered);
    const row = make("div", stepOf(event.step), "", "seen");
    if (action.region && whole) drawCrop(row, action);
    const list = make("ul", row);
    if (error) make("li", list, error);
    if (text) make("li", list, text.slice(0, 300));
    for (const hit of hits) addHit(list, hit);
    if (!list.childElementCount && action.kind !== "zoom") make("li", list, "nothing found");
  },
  answer(event, at) {
    end(at);
    $("answer").textContent = event.text || `No answer (${event.stop}).`;
    $("answer").className = event.text ? "" : "soft";
    const { prompt_tokens, reused_tokens, generated_tokens, searches } = event.usage;
    $("usage").textContent =
      `${event.stop} in ${event.seconds.toFixed(2)} s: ${prompt_tokens} tokens read, ${reused_tokens} not read again, ` +
      `${generated_tokens} written, ${searches} searches`;
    $("status").textContent = "Answered.";
  },
  error(event, at) {
    end(at);
    if ($("answer").textContent === "…") $("answer").textContent = "None.";
    $("status").textContent = "";
    fail(typeof event.error === "string" ? event.error : event.error.message);
  },
};

function stepOf(number) {
  while ($("steps").childElementCount <= number) {
    const at = $("steps").childElementCount;
    const item = make("li", $("steps"));
    item.style.setProperty("--colour", colour(at));
    make("h3", item, `${at + 1}.`);
    make("pre", item).tabIndex = 0;
  }
  return $("steps").children[number];
}

function drawBox(step, region, label, sure) {
  const { naturalWidth: width, naturalHeight: height } = $("picture");
  if (!width) return $("picture").addEventListener("load", () => drawBox(step, region, label, sure), { once: true });
  const name = [region.x0, region.y0, region.x1, region.y1].map((v) => v.toFixed(1)).join(" ");
  let box = [...$("boxes").children].find((b) => b.dataset.name === name && b.dataset.step === String(step));
  if (!box) {
    box = make("div", $("boxes"), "", "box");
    Object.assign(box.dataset, { name, step });
    Object.assign(box.style, {
      left: `${(100 * region.x0) / width}%`,
      top: `${(100 * region.y0) / height}%`,
      width: `${(100 * (region.x1 - region.x0)) / width}%`,
      height: `${(100 * (region.y1 - region.y0)) / height}%`,
    });
    box.style.setProperty("--colour", colour(step));
    make("span", box);
  }
  if (sure) box.classList.add("sure");
  box.firstChild.textContent = `${step + 1} ${label}`.trim();
  place();
}

async function drawCrop(row, action) {
  const { x0, y0, x1, y1 } = action.region;
  const canvas = document.createElement("canvas");
  const scale = SIDE / Math.max(x1 - x0, y1 - y0);
  canvas.width = Math.max(1, Math.round((x1 - x0) * scale));
  canvas.height = Math.max(1, Math.round((y1 - y0) * scale));
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", action.label ? `The crop: ${action.label}` : "The crop");
  row.prepend(canvas);
  const image = $("picture");
  await image.decode().catch(() => {});
  canvas.getContext("2d").drawImage(image, x0, y0, x1 - x0, y1 - y0, 0, 0, canvas.width, canvas.height);
}

function addHit(list, hit) {
  const item = make("li", list);
  if (/^https?:\/\//.test(hit.source)) {
    Object.assign(make("a", item, hit.title || hit.source), { href: hit.source, rel: "noreferrer", target: "_blank" });
  } else {
    make("strong", item, hit.title);
  }
  if (hit.score !== null) make("span", item, ` (${hit.score.toFixed(2)})`, "soft");
  if (hit.text) make("div", item, hit.text, "hit-text");
}

// -- time ----------------------------------------------------------------------------------------------------

const NAMES = { read: "reading", write: "writing", look: "looking and searching" };

function end(at) {
  spans.at(-1).to = at;
}

function enter(kind, at) {
  end(at);
  if (spans.at(-1).kind !== kind) spans.push({ kind, from: at, to: at });
}

function drawTime(at) {
  end(at);
  const line = $("line");
  const sums = {};
  spans.forEach(({ kind, from, to }, number) => {
    const bar = line.children[number] || make("span", line);
    bar.className = kind;
    bar.style.flexGrow = Math.max(to - from, 1);
    sums[kind] = (sums[kind] || 0) + to - from;
  });
  const parts = Object.entries(sums).filter(([, ms]) => ms >= 0.5);
  $("times").replaceChildren();
  for (const [kind, ms] of parts) {
    const part = make("span", $("times"));
    make("span", part, "", `key ${kind}`);
    part.append(`${NAMES[kind]} ${(ms / 1000).toFixed(2)} s`);
  }
}

// -- history -------------------------------------------------------------------------------------------------

function keep(record) {
  past.unshift(record);
  if (past.length > MOST_KEPT) {
    const old = past.pop().picture;
    if (old !== picture && !past.some((r) => r.picture === old)) URL.revokeObjectURL(old.url);
  }
  $("no-past").hidden = true;
  $("history").replaceChildren();
  for (const one of past) {
    const button = make("button", make("li", $("history")));
    button.type = "button";
    Object.assign(make("img", button), { src: one.picture.url, alt: "" });
    const words = make("span", button, one.question);
    make("small", words, one.events.findLast(([, e]) => e.type === "answer")?.[1].text || "no answer");
    button.addEventListener("click", () => review(one));
  }
}

async function review(record) {
  if (running) return;
  cameraOff();
  picture = record.picture;
  $("question").value = record.question;
  begin(record);
  await $("picture").decode().catch(() => {});
  if (shown === record) for (const [at, event] of record.events) handle(event, at);
}

// -- the page ------------------------------------------------------------------------------------------------

function start() {
  $("key").value = sessionStorage.getItem("gog-edge key") || "";
  $("key").addEventListener("change", () => sessionStorage.setItem("gog-edge key", $("key").value));
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    $("access").open = false;
  });
  $("file").addEventListener("change", () => {
    choose($("file").files[0]);
    $("file").value = "";
  });
  $("camera-switch").addEventListener("click", () => (stream ? cameraOff() : cameraOn()));
  $("take").addEventListener("click", async () => choose(await frame()));
  $("stop").addEventListener("click", () => running?.abort());
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running) ask();
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("form").requestSubmit();
    }
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      $("stage").classList.toggle("over", kind === "dragover");
      if (kind === "drop" && !running) choose(event.dataTransfer.files[0]);
    });
  }
  document.addEventListener("paste", (event) => {
    const file = event.clipboardData.files[0];
    if (file && !running) choose(file);
  });
  new ResizeObserver(place).observe($("picture"));
  fetch("/healthz")
    .then((reply) => reply.json())
    .then((health) => ($("bundle").textContent = `${health.bundle}, version ${health.version}`))
    .catch(() => fail("The server can't be reached."));
}

start();
