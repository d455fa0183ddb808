// The page of `mixformer serve`. One WebSocket is one session; what is drawn is what the server said last.

const $ = (id) => document.getElementById(id);
const canvas = $("canvas"), context = canvas.getContext("2d");
// As in the videos that are written (media/images.py).
const COLOURS = ["#50ff3c", "#40a0ff", "#ff6e3c", "#f05adc", "#3ce6e6", "#aa82ff", "#c8dc5a", "#ffffff"];
const KINDS = {"S-to-T": "search to template", "S-to-OT": "search to online template", "S-to-S": "search to search"};
const LEAST_SIDE = 4; // of a box, in pixels of the screen: anything smaller was a tap
const COMPILING = "Opening as soon as the model is compiled; the first start takes a minute …";
const CAMERA_WAIT_MS = 1000, ALERT_MS = 9000, WORKING_MS = 500;
const ANSWERED_BY_A_PICTURE = ["add", "replace", "template", "remove", "seek", "overlay"];

let hello = null; // what the server offers
let opened = null; // the video: name, width, height, fps, frames, live
let shown = null; // about the frame on the canvas
let picture = null; // its pixels
let isReady = false; // whether the server's programs are compiled
let isPlaying = false, isBusy = false;
let drawn = null; // the box being drawn, in pixels of the video
let asked = null; // {act, target} where the next box is for a target that is there
let frames = 0; // known so far
let camera = null; // {video, canvas, stream, sent: Map}
let newest = 0; // pictures are decoded side by side, and an older one must not come last

const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
socket.binaryType = "arraybuffer";
let working = 0;
function send(command) {
  if (socket.readyState !== WebSocket.OPEN) return;
  socket.send(JSON.stringify(command));
  if (!ANSWERED_BY_A_PICTURE.includes(command.do)) return;
  clearTimeout(working);
  working = setTimeout(() => ($("hint").textContent = "Working …"), WORKING_MS);
}

socket.onmessage = ({data}) => {
  if (typeof data === "string") return take(JSON.parse(data));
  const length = new DataView(data).getUint32(0);
  const about = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  const number = ++newest;
  createImageBitmap(new Blob([new Uint8Array(data, 4 + length)], {type: "image/jpeg"})).then((bitmap) => {
    send({do: "ack"});
    if (number === newest) show(about, bitmap);
  });
};
socket.onclose = () => {
  status("Not connected");
  stopCamera();
  alert_("The connection has ended, and with it the session. Reload the page to begin anew.", true);
};

function take(message) {
  switch (message.is) {
    case "hello":
      hello = message;
      $("folder-form").hidden = !message.videos.length;
      $("folder").replaceChildren(...message.videos.map((name) => new Option(name)));
      $("address-form").hidden = !message.addresses;
      $("note").textContent = message.note ?? "";
      $("note").hidden = !message.note;
      $("attention").hidden = !message.overlay.kinds.length;
      $("overlay-kind").replaceChildren(...message.overlay.kinds.map((kind) => new Option(KINDS[kind], kind)));
      $("overlay-block").replaceChildren(...message.overlay.blocks.map((block) => new Option(block)));
      $("overlay-block").selectedIndex = message.overlay.blocks.length - 1;
      status(`Compiling ${message.model} …`);
      $("file").disabled = false;
      $("camera").disabled = false;
      break;
    case "ready":
      isReady = true;
      status(hello.model);
      if (isBusy && $("drop-hint").textContent === COMPILING) $("drop-hint").textContent = "Opening …";
      break;
    case "opened": opened = message; begin(); break;
    case "found": {
      const bitmap = camera?.sent.get(message.number);
      for (const number of camera?.sent.keys() ?? []) if (number <= message.number) camera.sent.delete(number);
      if (bitmap) show(message, bitmap);
      break;
    }
    case "playing": setPlaying(true); break;
    case "paused": setPlaying(false); break;
    case "writing": $("video").textContent = `Writing ${Math.round((100 * message.done) / message.of)} %`; break;
    case "written":
      setWriting(false);
      download("tracked.mp4");
      break;
    case "error":
      setWriting(false);
      setBusy(false);
      clearTimeout(working);
      hint();
      alert_(message.text);
      break;
    case "full": status("Full"); alert_(message.text, true); break;
  }
}

// Opening

$("file").onchange = () => $("file").files[0] && upload($("file").files[0]);
$("drop").ondragover = (event) => { event.preventDefault(); $("drop").classList.add("over"); };
$("drop").ondragleave = () => $("drop").classList.remove("over");
$("drop").ondrop = (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (event.dataTransfer.files[0]) upload(event.dataTransfer.files[0]);
};
$("folder-form").onsubmit = (event) => open_(event, {kind: "folder", name: $("folder").value});
$("address-form").onsubmit = (event) => open_(event, {kind: "address", name: $("address").value.trim()});
$("camera").onclick = startCamera;
$("another").onclick = () => {
  send({do: "pause"});
  stopCamera();
  $("work").hidden = $("another").hidden = true;
  document.body.classList.remove("at-work");
  $("start").hidden = false;
  $("title").textContent = "";
  $("file").value = "";
};

function open_(event, command) {
  event.preventDefault();
  setBusy(true, isReady ? "Opening …" : COMPILING);
  send({do: "open", ...command});
}

function upload(file) {
  if (isBusy) return;
  if (file.size > hello.upload_bytes) {
    alert_(`${file.name} has ${Math.ceil(file.size / 2 ** 20)} MB; this server takes ${hello.upload_bytes / 2 ** 20}`);
    return;
  }
  setBusy(true, "Uploading …");
  const request = new XMLHttpRequest();
  request.open("POST", `sessions/${hello.session}/upload`);
  request.upload.onprogress = ({loaded, total}) => {
    $("progress").hidden = false;
    $("progress").value = loaded / total;
  };
  request.onloadend = () => {
    $("progress").hidden = true;
    if (request.status === 200) {
      setBusy(true, isReady ? "Opening …" : COMPILING);
      send({do: "open", kind: "upload", name: file.name});
    } else {
      setBusy(false);
      alert_(request.responseText || "The upload broke off.");
    }
  };
  request.send(file);
}

function begin() {
  setBusy(false);
  $("start").hidden = true;
  $("work").hidden = $("another").hidden = false;
  document.body.classList.add("at-work");
  $("title").textContent = opened.name;
  frames = opened.frames ?? 0;
  shown = picture = asked = null;
  setPlaying(false);
  setWriting(false);
  $("fast").checked = false;
  $("speed").hidden = opened.live;
  send({do: "speed", fast: false});
  listTargets([]);
  $("where").value = "";
  layout();
}

// The camera

async function startCamera() {
  if (!navigator.mediaDevices) {
    alert_("Browsers give their camera to pages at https:// or on this computer (localhost) alone.");
    return;
  }
  setBusy(true, "Waiting for the camera …");
  try {
    const wanted = {width: {ideal: 640}, height: {ideal: 480}, facingMode: "environment"};
    const stream = await navigator.mediaDevices.getUserMedia({video: wanted});
    const video = Object.assign(document.createElement("video"), {srcObject: stream, muted: true, playsInline: true});
    await video.play();
    const still = document.createElement("canvas");
    [still.width, still.height] = [video.videoWidth, video.videoHeight];
    camera = {video, stream, canvas: still, sent: new Map(), number: 0, at: 0, isEncoding: false};
    send({do: "open", kind: "camera", width: still.width, height: still.height});
    requestAnimationFrame(sendPicture);
  } catch (error) {
    setBusy(false);
    alert_(`The camera cannot be used: ${error.message}`);
  }
}

// A picture goes when the one before has come back, so that what is seen is now.
function sendPicture() {
  if (!camera) return;
  requestAnimationFrame(sendPicture);
  const now = performance.now();
  if (now - camera.at > CAMERA_WAIT_MS) camera.sent.clear();
  if (!isPlaying || drawn || camera.isEncoding || camera.sent.size > 1) return;
  if (camera.video.currentTime === camera.time) return;
  camera.time = camera.video.currentTime;
  camera.at = now;
  camera.isEncoding = true;
  const {width, height} = camera.canvas, number = ++camera.number, mine = camera;
  mine.canvas.getContext("2d").drawImage(mine.video, 0, 0, width, height);
  mine.canvas.toBlob(async (blob) => {
    const message = new Uint8Array(4 + blob.size);
    new DataView(message.buffer).setUint32(0, number);
    message.set(new Uint8Array(await blob.arrayBuffer()), 4);
    mine.sent.set(number, await createImageBitmap(blob));
    mine.isEncoding = false;
    if (socket.readyState === WebSocket.OPEN) socket.send(message);
  }, "image/jpeg", 0.85);
}

function stopCamera() {
  camera?.stream.getTracks().forEach((track) => track.stop());
  camera = null;
}

// Showing

function show(about, bitmap) {
  clearTimeout(working);
  if (drawn) return; // the box is drawn on what was seen
  // While it plays, an overlay comes with every few frames alone, and stays until the next.
  if (isPlaying && $("overlay-target").value !== "") about.overlay ??= shown?.overlay;
  [shown, picture] = [about, bitmap];
  frames = Math.max(frames, about.frame + 1);
  listTargets(about.targets);
  $("slider").max = Math.max(0, frames - 1);
  $("slider").value = about.frame;
  $("where").value = `${about.frame + 1} / ${frames}   ${clock(about.time)}`;
  $("rate").value = isPlaying && about.fps ? `${about.fps.toFixed(1)} FPS` : "";
  const hasBoxes = about.last >= 0;
  $("csv").disabled = $("json").disabled = !hasBoxes;
  $("video").disabled = !hasBoxes || isWriting;
  hint();
  draw();
}

const clock = (seconds) => `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;

function layout() {
  if (!opened) return;
  const room = canvas.parentElement.clientWidth, most = Math.max(240, innerHeight * 0.72);
  const width = Math.min(room, (most * opened.width) / opened.height);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${(width * opened.height) / opened.width}px`;
  canvas.width = Math.round(width * devicePixelRatio);
  canvas.height = Math.round(((width * opened.height) / opened.width) * devicePixelRatio);
  draw();
}
addEventListener("resize", layout);

function draw() {
  const scale = canvas.width / opened.width;
  if (!picture) return context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  if (shown.overlay) drawOverlay(shown.overlay, scale);
  for (const {target, box, score, lost} of shown.targets) {
    const words = [target + 1, ...(lost ? ["lost"] : []), ...(score === null ? [] : [score.toFixed(2)])];
    drawBox(box, colour(target), scale, words.join("  "), lost);
  }
  if (drawn) drawBox(drawn, asked ? colour(asked.target) : "#ffffff", scale);
}

const colour = (target) => COLOURS[target % COLOURS.length];

function drawBox([x, y, w, h], ink, scale, label, dashed) {
  const unit = devicePixelRatio, rectangle = [x * scale, y * scale, w * scale, h * scale];
  context.setLineDash(dashed ? [8 * unit, 6 * unit] : []);
  for (const [style, width] of [["#000a", 4], [ink, 2]]) {
    context.strokeStyle = style;
    context.lineWidth = width * unit;
    context.strokeRect(...rectangle);
  }
  context.setLineDash([]);
  if (!label) return;
  context.font = `600 ${12 * unit}px system-ui, sans-serif`;
  const wide = context.measureText(label).width + 10 * unit, high = 18 * unit;
  const left = Math.max(0, Math.min(rectangle[0] - unit, canvas.width - wide));
  const top = rectangle[1] - high < 0 ? rectangle[1] : rectangle[1] - high;
  context.fillStyle = ink;
  context.fillRect(left, top, wide, high);
  context.fillStyle = "#08120c";
  context.textBaseline = "middle";
  context.fillText(label, left + 5 * unit, top + high / 2 + unit / 2);
}

// One smooth field over the search region: the more attention, the warmer and the less transparent.
function drawOverlay({x, y, side, levels, target}, scale) {
  const small = new OffscreenCanvas(levels[0].length, levels.length), pixels = small.getContext("2d");
  const image = pixels.createImageData(small.width, small.height);
  levels.flat().forEach((level, at) => {
    const share = level / 255;
    image.data.set([255, 40 + 190 * share, 30 + 40 * share, 220 * share ** 1.5], 4 * at);
  });
  pixels.putImageData(image, 0, 0);
  context.imageSmoothingEnabled = true;
  context.drawImage(small, x * scale, y * scale, side * scale, side * scale);
  context.setLineDash([2 * devicePixelRatio, 4 * devicePixelRatio]);
  context.strokeStyle = colour(target);
  context.lineWidth = devicePixelRatio;
  context.strokeRect(x * scale, y * scale, side * scale, side * scale);
  context.setLineDash([]);
}

function listTargets(targets) {
  const list = $("targets");
  const rows = new Map([...list.children].map((row) => [Number(row.dataset.target), row]));
  for (const {target, score, lost} of targets) {
    const row = rows.get(target) ?? newRow(target);
    rows.delete(target);
    row.classList.toggle("lost", Boolean(lost));
    row.querySelector(".state").textContent = lost ? "lost" : "following";
    row.querySelector("meter").value = score ?? 0;
    row.querySelector("meter").hidden = score === null;
    row.querySelector(".score").textContent = score === null ? "" : score.toFixed(2);
  }
  for (const row of rows.values()) row.remove();
  $("nobody").hidden = targets.length > 0;
  const choice = $("overlay-target"), known = [...choice.options].slice(1).map((option) => Number(option.value));
  if (known.join() !== targets.map(({target}) => target).join()) {
    const chosen = choice.value;
    choice.replaceChildren(new Option("nobody", ""), ...targets.map(({target}) => new Option(target + 1, target)));
    choice.value = targets.some(({target}) => String(target) === chosen) ? chosen : "";
    if (choice.value !== chosen) setOverlay();
  }
}

function newRow(target) {
  const row = $("target-row").content.firstElementChild.cloneNode(true);
  row.dataset.target = target;
  row.querySelector(".swatch").style.background = colour(target);
  row.querySelector(".name").textContent = `Target ${target + 1}`;
  row.querySelector(".correct").onclick = () => ask({act: "replace", target});
  row.querySelector(".view").onclick = () => ask({act: "template", target});
  row.querySelector(".view").hidden = !hello.templates;
  row.querySelector(".remove").onclick = () => send({do: "remove", target, frame: shown.frame});
  const later = [...$("targets").children].find((other) => Number(other.dataset.target) > target);
  $("targets").insertBefore(row, later ?? null);
  return row;
}

// Drawing boxes

const place = (event) => {
  const {left, top, width} = canvas.getBoundingClientRect(), scale = opened.width / width;
  const within = (value, most) => Math.max(0, Math.min(most, value));
  return [within((event.clientX - left) * scale, opened.width), within((event.clientY - top) * scale, opened.height)];
};
let from = null, wasPlaying = false;

canvas.onpointerdown = (event) => {
  if (!shown || event.button) return;
  canvas.setPointerCapture(event.pointerId);
  [from, wasPlaying] = [place(event), isPlaying];
  drawn = [...from, 0, 0];
  if (isPlaying) send({do: "pause"});
};
canvas.onpointermove = (event) => {
  if (!from) return;
  const to = place(event);
  drawn = [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1])];
  draw();
};
canvas.onpointerup = () => {
  if (!from) return;
  const box = drawn, least = (LEAST_SIDE * opened.width) / canvas.getBoundingClientRect().width;
  from = drawn = null;
  if (box[2] >= least && box[3] >= least) {
    send({do: asked?.act ?? "add", target: asked?.target, box, frame: shown.frame});
    ask(null);
  } else {
    draw();
  }
  if (wasPlaying) send({do: "play"});
};
canvas.onpointercancel = () => { from = drawn = null; draw(); };

function ask(what) {
  asked = what;
  if (what && isPlaying) send({do: "pause"});
  hint();
}

function hint() {
  const words = {
    replace: (number) => `Draw the right box for target ${number}. Esc leaves it as it is.`,
    template: (number) => `Draw a box around target ${number} as it also looks, on any frame. Esc leaves it.`,
  };
  const nobody = shown && !shown.targets.length;
  const idle = nobody && shown.last < 0 ? "Drag a box around a target." : "";
  $("hint").textContent = asked ? words[asked.act](asked.target + 1) : idle;
  $("hint").classList.toggle("asks", Boolean(asked || idle));
}

// Controls

$("play").onclick = () => send({do: isPlaying ? "pause" : "play"});
$("slider").oninput = () => send({do: "seek", frame: Number($("slider").value)});
$("fast").onchange = () => send({do: "speed", fast: $("fast").checked});
for (const name of ["target", "kind", "block"]) $(`overlay-${name}`).onchange = setOverlay;
$("csv").onclick = () => download("boxes.csv");
$("json").onclick = () => download("boxes.json");
$("video").onclick = () => { setWriting(true); send({do: "write"}); };
addEventListener("keydown", (event) => {
  if (event.key === "Escape") { from = drawn = null; ask(null); if (picture) draw(); }
  if (!opened || $("work").hidden || event.target.closest("input, select, button")) return;
  if (event.key === " ") { event.preventDefault(); $("play").click(); }
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (step && shown) send({do: "seek", frame: Math.max(0, shown.frame + step)});
});

function setOverlay() {
  const target = $("overlay-target").value;
  const chosen = {kind: $("overlay-kind").value, block: $("overlay-block").value};
  send({do: "overlay", target: target === "" ? null : Number(target), ...chosen});
}

function setPlaying(value) {
  isPlaying = value;
  $("play").classList.toggle("playing", value);
  $("play").setAttribute("aria-label", value ? "Pause" : "Play");
  if (!value) $("rate").value = "";
}

let isWriting = false;
function setWriting(value) {
  isWriting = value;
  $("video").disabled = value || !(shown?.last >= 0);
  $("video").textContent = value ? "Writing …" : "Video with boxes";
}

function setBusy(value, words) {
  isBusy = value;
  $("drop-hint").textContent = value ? words : "or drop one here";
  for (const control of $("start").querySelectorAll("input, button, select")) control.disabled = value;
}

function download(name) {
  const link = Object.assign(document.createElement("a"), {href: `sessions/${hello.session}/${name}`, download: ""});
  link.click();
}

function status(text) { $("status").textContent = text; }

let hiding = 0;
function alert_(text, stays = false) {
  $("alert-text").textContent = text;
  $("alert").hidden = false;
  clearTimeout(hiding);
  if (!stays) hiding = setTimeout(() => ($("alert").hidden = true), ALERT_MS);
}
$("alert-close").onclick = () => ($("alert").hidden = true);
