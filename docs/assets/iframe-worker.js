// Search in pages that are opened as files: browsers start no Worker from a file. This class runs the worker's script in
// a hidden frame instead, with the interface of a Worker. The theme's plugin `offline` asks for a script of this name and
// would load one from a server.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      const inner = frame.contentWindow
      const base = new URL(url, location)
      inner.postMessage = (data) => {
        const message = new MessageEvent("message", { data })
        this.dispatchEvent(message)
        if (this.onmessage) this.onmessage(message)
      }
      const load = (source) =>
        new Promise((resolve, reject) => {
          const script = inner.document.createElement("script")
          script.src = new URL(source, base)
          script.onload = resolve
          script.onerror = reject
          inner.document.body.appendChild(script)
        })
      inner.importScripts = (...sources) => sources.reduce((before, its) => before.then(() => load(its)), Promise.resolve())
      this.frame = frame
      this.ready = load(base)
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
