// The explorer in the browser: what a person does moves the code, and the code is decoded. `parts` are
// Bokeh's models and the arrays of aae_jax/explorer/page.py.

export default (parts) => {
  const decode = parts.network ? local(parts.network) : remote(parts.wanted, parts.reply)
  window.explorer = explorer(parts, decode)
  window.explorer.picked(0.5, -0.5)
}

const mixed = (a, b, u) => a.map((value, i) => (1 - u) * value + u * b[i])
const row = (matrix, i) => Array.from(matrix.slice(i * matrix.shape[1], (i + 1) * matrix.shape[1]))
const likeliest = (label) => label.indexOf(Math.max(...label))

function explorer(parts, decode) {
  const {sliders, axes, labels, walk, play, dot, frames, columns} = parts
  const count = parts.codes.shape[0]
  const other = Math.min(count - 1, Math.floor(count / 2))
  let from = other, to = other  // numbers of the images that a walk goes between
  let style = row(parts.codes, 0)
  let label = parts.distributions && row(parts.distributions, 0)
  let values = null  // of the image that is shown
  let busy = false, again = false, frame = null
  let reached = null  // percent of a walk

  // A widget that is moved here calls back, later and only with its value: what is as it should be
  // already is no wish of the person's.
  const set = (widget, property, value) => {
    if (widget[property] !== value) widget[property] = value
  }

  function show() {
    const [across, up] = plane_of_two()
    dot.data = {x: [style[across]], y: [style[up]]}
    sliders.forEach((slider, i) => set(slider, "value", percentile(i, style[i])))
    if (labels) set(labels, "active", likeliest(label))
    request()
  }

  // Only the newest code waits: a hand is faster than a large decoder.
  async function request() {
    again = true
    if (busy) return
    busy = true
    while (again) {
      again = false
      const answer = await decode(style, label)
      if (answer) paint(parts.decoded, values = answer)
    }
    busy = false
  }

  function paint(source, image) {
    const {low, high} = parts, pixels = source.data.image[0]
    const bytes = new Uint8ClampedArray(pixels.buffer, pixels.byteOffset, 4 * pixels.length)
    const channels = image.length / pixels.length
    for (let i = 0; i < pixels.length; i++) {
      for (let c = 0; c < 3; c++) {
        const value = image[channels * i + (channels === 3 ? c : 0)]
        bytes[4 * i + c] = 255 * (value - low) / (high - low)
      }
    }
    source.change.emit()
  }

  // Codes and percentiles

  const plane_of_two = () => axes.length ? axes.map((axis) => Number(axis.value)) : [0, 1]
  const table = (i) => parts.levels.map((_, k) => parts.percentiles[k * style.length + i])

  function between(value, from, to) {
    let k = 1
    while (k < from.length - 1 && from[k] < value) k++
    const u = from[k] > from[k - 1] ? (value - from[k - 1]) / (from[k] - from[k - 1]) : 0
    return to[k - 1] + Math.min(1, Math.max(0, u)) * (to[k] - to[k - 1])
  }

  function percentile(i, value) {
    return Math.round(10 * between(value, table(i), parts.levels)) / 10
  }

  // What a person does

  function rest() {
    if (play.active) play.active = false
  }

  function dragged(x, y) {
    rest()
    const [across, up] = plane_of_two()
    style = style.slice()
    style[across] = x
    if (up !== across) style[up] = y
    show()
  }

  function slid(i, value) {
    if (value === percentile(i, style[i])) return
    rest()
    style = style.slice()
    style[i] = between(value, parts.levels, table(i))
    show()
  }

  function labelled(number) {
    if (number === null || number === likeliest(label)) return
    rest()
    label = label.map((_, i) => i === number ? 1 : 0)
    show()
  }

  function picked(x, y) {
    const number = Math.floor(-y) * columns + Math.floor(x)
    if (number < 0 || number >= count) return
    rest();
    [from, to] = [to, number]
    const size = parts.pictures.length / count
    paint_original(parts.pictures.slice(number * size, (number + 1) * size))
    frames.data = {
      x: [from, to].map((number) => number % columns + 0.5),
      y: [from, to].map((number) => -Math.floor(number / columns) - 0.5),
      color: ["#8a94a0", "#1f2933"],
    }
    reached = 100
    set(walk, "value", 100)
    go_along(1)
  }

  function paint_original(picture) {
    paint(parts.original, picture.map((value) => parts.low + value * (parts.high - parts.low)))
  }

  function walked(percent) {
    if (percent === reached) return
    reached = percent
    go_along(percent / 100)
  }

  // The straight line between two codes, and between their labels.
  function go_along(u) {
    style = mixed(row(parts.codes, from), row(parts.codes, to), u)
    if (label) label = mixed(row(parts.distributions, from), row(parts.distributions, to), u)
    show()
  }

  function played(active) {
    set(play, "label", active ? "❚❚ Pause" : "▶ Play")
    cancelAnimationFrame(frame)
    if (!active) return
    const start = performance.now(), first = walk.value >= 100 ? 0 : walk.value
    const step = (now) => {
      const way = first / 100 + (now - start) / 3000  // back and forth, three seconds a way
      walk.value = 100 * (1 - Math.abs(1 - way % 2))
      frame = requestAnimationFrame(step)
    }
    frame = requestAnimationFrame(step)
  }

  function turned(center, half) {
    plane_of_two().forEach((dimension, k) => {
      const range = k ? parts.plane.y_range : parts.plane.x_range
      range.setv({start: center[dimension] - half, end: center[dimension] + half})
      for (const layer of parts.layers) layer.glyph[k ? "y" : "x"] = {field: `z${dimension}`}
    })
    show()
  }

  function lost() {
    document.getElementById("note").textContent =
      "The program that decodes has ended: start it again and reload this page."
  }

  const state = () => ({style, label, values, busy, from, to})
  return {dragged, slid, labelled, picked, walked, played, turned, lost, state, decode}
}

// Decoders: (style, label) -> a promise of the image's values, or null where there is none

function remote(wanted, reply) {
  let number = 0
  return (style, label) => new Promise((resolve) => {
    const mine = ++number
    const answered = () => {
      if (reply.data.number[0] !== mine) return
      reply.properties.data.change.disconnect(answered)
      resolve(reply.data.values[0])
    }
    reply.properties.data.change.connect(answered)
    wanted.data = {number: [mine], style: [style], label: [label || []]}
  })
}

const activations = {
  relu: (x) => Math.max(0, x),
  leaky_relu: (x) => x < 0 ? 0.2 * x : x,
  gelu: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  tanh: Math.tanh,
  softplus: (x) => Math.max(0, x) + Math.log1p(Math.exp(-Math.abs(x))),
}
const outputs = {linear: (x) => x, sigmoid: (x) => 1 / (1 + Math.exp(-x))}

function local(network) {
  return async (style, label) => {
    const last = network.layers.length - 1
    let x = joined(network.heads, style, label)
    network.layers.forEach((layer, i) => {
      x = linear(layer, x).map(i < last ? activations[network.activation] : outputs[network.output])
    })
    x = x.map((value, i) => value * network.scale[i] + network.shift[i])
    return network.clipped ? x.map((value) => Math.min(1, Math.max(0, value))) : x
  }
}

function joined(heads, style, label) {
  if (!heads) return [...style, ...(label || [])]
  return style.map((value, i) => value + label.reduce((sum, p, k) => sum + p * row(heads, k)[i], 0))
}

function linear({weights, scale, bias}, input) {
  const width = bias.length, sum = new Float64Array(width)
  input.forEach((value, i) => {
    if (value === 0) return  // of a relu
    const start = i * width
    for (let j = 0; j < width; j++) sum[j] += value * weights[start + j]
  })
  return sum.map((value, j) => value * scale[j] + bias[j])
}
