// NiiVue, and what it shows: a scan, and as a drawing over it the mask. Its voxels have an index in the scan's file.

import { placeOf } from './nifti.js'
import { Niivue, NVImage, SHOW_RENDER, SLICE_TYPE } from './niivue.js'

export const LESION = 1, REGION = 2 // bits of the drawing, of which pens draw one
const COLOURS = { R: [0, 255, 40, 255], G: [0, 0, 150, 190], B: [0, 0, 255, 0], A: [0, 255, 160, 255] }
const NEVER = 2 ** 31 - 1

export class Viewer {
  /**
   * On a ``canvas``; ``onMove`` is told where the crosshair is, in words, ``onStroke`` that something was drawn, and
   * ``onClick`` that the crosshair was put somewhere.
   */
  constructor(canvas, onMove, onStroke, onClick) {
    Object.assign(this, { canvas, onStroke })
    this.niivue = new Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [0.4, 0.9, 1, 0.7], dragAndDropEnabled: false, isResizeCanvas: true,
      loadingText: '', crosshairWidth: 0.5, show3Dcrosshair: true, doubleTouchTimeout: 0, longTouchTimeout: NEVER,
    })
    this.niivue.drawOpacity = 0.5
    this.niivue.onLocationChange = ({ mm }) =>
      onMove(`x ${mm[0].toFixed(0)}, y ${mm[1].toFixed(0)}, z ${mm[2].toFixed(0)} mm`)
    this.niivue.onDrawingChanged = (what) => { if (what === 'draw') onStroke() }
    this.niivue.onMouseUp = ({ fracPos, mouseButtonRightDown, mouseButtonCenterDown }) => {
      if (fracPos[0] >= 0 && !mouseButtonRightDown && !mouseButtonCenterDown) onClick()
    }
    canvas.onpointerdown = ({ pointerId }) => canvas.setPointerCapture(pointerId) // or a stroke ends where it leaves
  }

  /** A NIfTI file's bytes, in place of all that was shown. */
  async showScan(bytes) {
    this.attached ??= this.niivue.attachToCanvas(this.canvas).then(() => this.niivue.setDrawColormap(COLOURS))
    await this.attached
    this.clear()
    this.niivue.opts.multiplanarShowRender = SHOW_RENDER.NEVER // drawing in 3D and segmenting at once would slow both
    this.niivue.addVolume(await NVImage.new(bytes.buffer, 'scan.nii', 'gray'))
  }

  clear() {
    this.setPen()
    if (this.bits) this.niivue.closeDrawing()
    this.bits = undefined
    for (const volume of [...this.niivue.volumes]) this.niivue.removeVolume(volume)
  }

  /** A mask, a byte a voxel of the file, over the scan, if there is one; at first looked at in its ``middle`` (mm). */
  showMask(voxels, middle) {
    if (!this.niivue.volumes.length) return
    if (!this.bits) {
      this.niivue.opts.multiplanarShowRender = SHOW_RENDER.ALWAYS
      if (middle) this.niivue.scene.crosshairPos = this.niivue.mm2frac(middle, 0, true)
      this.niivue.createEmptyDrawing()
      this.niivue.createOnLocationChange()
    }
    this.bits = voxels
    this.paint()
  }

  /** Draw the bits, brought to the drawing's order as NiiVue brings a volume's voxels there. */
  paint() {
    const [volume] = this.niivue.volumes
    this.painted = volume.img2RAS.call({ ...volume, img: this.bits })
    this.niivue.drawBitmap.set(this.painted)
    this.niivue.refreshDrawing(true)
  }

  /** The file's voxel at a place of the drawing, whose axes go to the right, front and top. */
  inFile(place) {
    const { img2RASstart, img2RASstep } = this.niivue.volumes[0]
    return place.reduce((n, along, axis) => n + img2RASstart[axis] + along * img2RASstep[axis], 0)
  }

  /** What was drawn since, and ``depth`` slices to either side, as voxels of the file; the picture is as before. */
  takeStroke(depth) {
    const { drawBitmap: drawn, drawPenAxCorSag: plane, volumes: [{ dimsRAS: [, ...sides] }] } = this.niivue
    const axis = 2 - plane, found = new Set()
    for (let i = 0; i < drawn.length; i++) {
      if (drawn[i] === this.painted[i]) continue
      const place = placeOf(i, sides), last = Math.min(place[axis] + depth, sides[axis] - 1)
      for (let k = Math.max(place[axis] - depth, 0); k <= last; k++) found.add(this.inFile(place.with(axis, k)))
    }
    this.paint()
    return Int32Array.from(found)
  }

  /** Change the bits of these voxels. */
  change(voxels, how) {
    if (!this.bits || !voxels.length) return
    for (const n of voxels) this.bits[n] = how(this.bits[n])
    this.paint()
  }

  /** Draw this value from now on; without one, do not draw. */
  setPen(value, filled, size) {
    const drawingEnabled = value !== undefined && Boolean(this.bits)
    const isFilledPen = Boolean(filled)
    Object.assign(this.niivue.opts, { drawingEnabled, penValue: value ?? 0, isFilledPen, penSize: size })
  }

  /** As a pen of that size does that is put down at the crosshair. */
  dab(size) {
    const { opts, scene } = this.niivue, { penSize, sliceType } = opts
    opts.penSize = size
    this.niivue.drawPenAxCorSag = sliceType <= SLICE_TYPE.SAGITTAL ? sliceType : SLICE_TYPE.AXIAL
    this.niivue.drawPt(...this.niivue.frac2vox(scene.crosshairPos), opts.penValue)
    this.onStroke()
    this.niivue.drawPenAxCorSag = -1
    opts.penSize = penSize
  }

  /** The file's voxel at the crosshair. */
  here() {
    return this.inFile([...this.niivue.frac2vox(this.niivue.scene.crosshairPos)])
  }

  /** Move the crosshair by voxels to the right, up and out of the plane that is seen. */
  move(right, up, out) {
    const by = { [SLICE_TYPE.CORONAL]: [right, out, up], [SLICE_TYPE.SAGITTAL]: [out, right, up] }
    this.niivue.moveCrosshairInVox(...(by[this.niivue.opts.sliceType] ?? [right, up, out]))
  }
}
