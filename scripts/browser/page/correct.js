// Corrections of the mask in view, by hand: tools, keys, undo and redo. The bench's worker has the mask, too.

import { latest } from './ask.js'
import { LESION, REGION } from './viewer.js'

const $ = (id) => document.getElementById(id)
const TOOLS = { // what a pen draws, or what a click on a lesion does
  look: {}, pen: { value: LESION }, outline: { value: LESION, filled: true }, eraser: { value: 0 },
  region: { value: REGION, filled: true }, remove: { keep: false }, keep: { keep: true },
}
const MOVES = {
  ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0],
  PageUp: [0, 0, 1], PageDown: [0, 0, -1],
}

export class Corrector {
  /** Of what ``viewer`` shows, one edit after another in a ``queue``; ``ask`` asks the worker, ``changed`` is told. */
  constructor(viewer, queue, ask, changed) {
    Object.assign(this, { viewer, queue, ask, changed, tool: 'look', region: new Set() })
    this.radios = [...document.querySelectorAll('[name=tool]')]
    for (const radio of this.radios) radio.onchange = () => this.choose(radio.value)
    $('penSize').oninput = () => this.choose(this.tool)
    $('undo').onclick = () => queue(() => this.step(this.done, this.undone))
    $('redo').onclick = () => queue(() => this.step(this.undone, this.done))
    $('inside').oninput = latest(queue, () => this.thresholdInside())
    $('showKeys').onclick = () => $('keys').showModal()
    $('stage').addEventListener('keydown', (event) => this.key(event), true)
    document.addEventListener('keydown', (event) => this.undoKey(event))
    this.begin()
  }

  /** With a ``scan`` whose mask is shown, or with none. */
  begin(scan) {
    Object.assign(this, { scan, before: scan?.corrected, done: [], undone: [] })
    $('correct').hidden = !this.viewer.bits
    this.choose(this.tool)
  }

  choose(tool) {
    if (tool !== this.tool || !this.scan) {
      this.viewer.change([...this.region], (bits) => bits & LESION)
      this.region = new Set()
    }
    this.tool = tool
    for (const radio of this.radios) radio.checked = radio.value === tool
    const { value, filled } = this.scan ? TOOLS[tool] : {}
    this.viewer.setPen(value, filled, filled ? 1 : Number($('penSize').value)) // an outline is thin
    this.show()
  }

  show() {
    const { value } = $('penSize'), unit = this.tool === 'region' ? 'slice' : 'voxel'
    $('penSizeShown').textContent = `${value} ${unit}${value > 1 ? 's' : ''}`
    $('insideShown').textContent = Number($('inside').value).toFixed(2)
    $('undo').disabled = !this.done.length
    $('redo').disabled = !this.undone.length
  }

  /** Something was drawn. */
  stroke() {
    const { value } = TOOLS[this.tool]
    const voxels = this.viewer.takeStroke(value === REGION ? ($('penSize').value - 1) / 2 : 0)
    if (value === REGION) {
      for (const n of voxels) this.region.add(n)
      this.viewer.change(voxels, (bits) => bits | REGION)
    } else if (value !== undefined) {
      this.queue(() => this.change(voxels.filter((n) => (this.viewer.bits[n] & LESION) !== value)))
    }
  }

  /** The tool is used at the crosshair. */
  click() {
    const { keep } = TOOLS[this.tool]
    if (keep === undefined || !this.scan) return
    const at = this.viewer.here()
    this.queue(async () => this.change((await this.ask('part', { at, keep })).voxels))
  }

  async thresholdInside() {
    const { region } = this, threshold = Number($('inside').value)
    this.show()
    if (!this.scan) return
    if (this.done.at(-1)?.region === region) this.step(this.done, []) // of its thresholds the last counts
    this.change((await this.ask('inside', { region: Int32Array.from(region), threshold })).voxels, region)
  }

  /** Flip these voxels, unless the scan left the view meanwhile. */
  change(voxels, region) {
    if (!voxels.length || !this.scan) return
    this.done.push({ voxels, region })
    this.undone = []
    this.flip(voxels)
  }

  step(from, to) {
    const change = from.pop()
    if (!change) return
    to.push(change)
    this.flip(change.voxels)
  }

  flip(voxels) {
    this.viewer.change(voxels, (bits) => bits ^ LESION)
    this.ask('change', { voxels })
    this.scan.corrected = this.before || this.done.length > 0
    this.show()
    this.changed()
  }

  undoKey(event) {
    if (!(event.ctrlKey || event.metaKey) || !/^[zy]$/i.test(event.key) || !this.scan) return
    event.preventDefault()
    const redo = event.shiftKey || event.key.toLowerCase() === 'y'
    $(redo ? 'redo' : 'undo').click()
  }

  /** Where the scan has the focus, letters choose tools, and what NiiVue would do at them is not done. */
  key(event) {
    const { key } = event, radio = this.radios.find(({ dataset }) => dataset.key === key.toLowerCase())
    if (event.ctrlKey || event.metaKey || event.altKey || !this.viewer.bits) return
    if (MOVES[key]) this.viewer.move(...MOVES[key])
    else if (key === '?') $('keys').showModal()
    else if (!this.scan) return
    else if (radio) this.choose(radio.value)
    else if (key === 'Escape') this.choose('look')
    else if (key === '[' || key === ']') this.turn('penSize', key === ']' ? 1 : -1)
    else if (key === '-' || key === '+') this.turn('inside', key === '+' ? 1 : -1)
    else if (key !== 'Enter') return
    else if (TOOLS[this.tool].value === undefined) this.click()
    else this.viewer.dab(Number($('penSize').value))
    event.preventDefault()
    event.stopPropagation()
  }

  turn(slider, steps) {
    $(slider).stepUp(steps)
    $(slider).dispatchEvent(new Event('input'))
  }
}
