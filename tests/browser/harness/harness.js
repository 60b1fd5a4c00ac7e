/** Puts the card on the page with a fake model, and hands both to the tests as `window.harness`. */

import card from "/static/card.js";
import panel from "/static/panel.js";
import set from "/static/set.js";

/** The part of anywidget's model that a view may use; what it was told is kept for the tests. */
class FakeModel {
  listeners = [];
  sent = [];

  constructor(state, widget_manager) {
    Object.assign(this, { state, widget_manager });
  }
  get = (trait) => this.state[trait];
  set = (trait, value) => {
    this.state[trait] = value;
    this.tell(`change:${trait}`, value);
  };
  on = (event, callback) => this.listeners.push({ event, callback });
  off = (event, callback) => {
    this.listeners = this.listeners.filter((one) => one.event !== event || one.callback !== callback);
  };
  send = (content) => this.sent.push(content);
  save_changes = () => {};
  tell = (event, value) => this.listeners.filter((one) => one.event === event).forEach((one) => one.callback(value));
}

/** The page's own kernel connection, as JupyterLab has it. */
class FakeKernel {
  clientId = "page-client";
  slots = new Set();
  ends = new Set();
  statusChanged = { connect: (slot) => this.slots.add(slot), disconnect: (slot) => this.slots.delete(slot) };
  disposed = { connect: (slot) => this.ends.add(slot), disconnect: (slot) => this.ends.delete(slot) };
  sent = [];
  forgotten = 0;

  sendControlMessage(message) {
    this.sent.push(message);
    this.future = { onReply: () => {}, dispose: () => (this.forgotten += 1) };
    return this.future;
  }
}

/** A kernel connection of the card's own; it opens when the test says so. */
class FakeSocket extends EventTarget {
  sent = [];
  closed = 0;

  constructor(url) {
    super();
    this.url = String(url);
    harness.sockets.push(this);
  }
  send(data) {
    this.sent.push(JSON.parse(data));
  }
  close() {
    this.closed += 1;
  }
  receive(message) {
    this.dispatchEvent(new MessageEvent("message", { data: JSON.stringify(message) }));
  }
}

const harness = {
  sockets: [],

  /** Shows a run; `channels` says what the page has: "kernel", "socket", or neither. */
  mount(run, channels = "kernel") {
    this.kernel = new FakeKernel();
    window.WebSocket = FakeSocket;
    if (channels === "socket") this.addPageConfig();
    const manager = channels === "kernel" ? { kernel: this.kernel } : {};
    this.model = new FakeModel({ run, kernel_id: "kernel-id", session_id: "session-id" }, manager);
    this.draw();
  },

  /** Shows the model in a view, which may be its second. */
  draw() {
    this.cleanup = card.render({ model: this.model, el: document.getElementById("output") });
  },

  /** Shows a runs panel, with the card of `run` if that is open. */
  mountPanel(runs, run = {}) {
    this.kernel = new FakeKernel();
    const state = { panel: runs, run, kernel_id: "kernel-id", session_id: "session-id" };
    this.model = new FakeModel(state, { kernel: this.kernel });
    this.cleanup = panel.render({ model: this.model, el: document.getElementById("output") });
  },

  /** Shows the card of a set, with that of `run` if it is open. */
  mountSet(runs, run = {}) {
    const state = { set: runs, run, kernel_id: "kernel-id", session_id: "session-id" };
    this.model = new FakeModel(state, { kernel: new FakeKernel() });
    this.cleanup = set.render({ model: this.model, el: document.getElementById("output") });
  },

  /** The kernel sends what the panel shows: the fields that differ, and the open run if it does. */
  updatePanel(fields, run) {
    if (run) this.model.state.run = run; // both are set before either is told of
    this.model.set("panel", { ...this.model.get("panel"), ...fields });
    if (run) this.model.set("run", run);
  },

  /** Has the model of a card in a notebook whose outputs are these; the page shows their HTML. */
  initialize(run, html) {
    const output = document.getElementById("output");
    const set = (at, { data }) => {
      outputs[at].data = data;
      output.children[at].innerHTML = data["text/html"];
    };
    const outputs = html.map((each) => ({ data: { "text/html": each } }));
    output.innerHTML = html.map((each) => `<div class="jp-RenderedHTMLCommon">${each}</div>`).join("");
    const cell = { outputs: { get: (at) => outputs[at], length: outputs.length, set } };
    const cells = { get: (at) => [{}, cell][at], length: 2 }; // a text, and a cell with outputs
    this.outputs = outputs;
    const state = { run, place: "nbrun-at-1", kernel_id: "kernel-id", session_id: "session-id" };
    this.model = new FakeModel(state, { kernel: new FakeKernel(), context: { model: { cells } } });
    this.cleanup = card.initialize({ model: this.model });
  },

  /** What a Jupyter server writes into its pages. */
  addPageConfig() {
    const config = document.createElement("script");
    Object.assign(config, { id: "jupyter-config-data", type: "application/json" });
    config.textContent = JSON.stringify({ baseUrl: "/hub/", wsUrl: "", token: "a token" });
    document.head.append(config);
  },

  /** The kernel sends a new state: the fields that differ. */
  update(fields) {
    this.model.set("run", { ...this.model.get("run"), ...fields });
  },

  /** The kernel answers the latest click, as a custom message. */
  reply(outcome, nonce = this.model.sent.at(-1).nonce) {
    this.model.tell("msg:custom", { op: "reply", nonce, outcome });
  },
};

document.documentElement.dataset.theme = new URLSearchParams(location.search).get("theme") ?? "light";
window.harness = harness;
