// NiiVue, and what it shows: a scan, and its mask in red.

import { Niivue, NVImage, SHOW_RENDER, SLICE_TYPE } from './niivue.js'

export class Viewer {
  /** On a ``canvas``; ``onMove`` is told where the crosshair is, in words. */
  constructor(canvas, onMove) {
    this.canvas = canvas
    this.niivue = new Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [0.4, 0.9, 1, 0.7], dragAndDropEnabled: false, isResizeCanvas: true,
      loadingText: '', crosshairWidth: 0.5, show3Dcrosshair: true,
    })
    this.niivue.onLocationChange = ({ mm }) => onMove(`x ${mm[0].toFixed(0)}, y ${mm[1].toFixed(0)}, z ${mm[2].toFixed(0)} mm`)
    this.planes = SLICE_TYPE.MULTIPLANAR
  }

  /** A NIfTI file's bytes, in place of all that was shown. */
  async showScan(bytes) {
    this.attached ??= this.niivue.attachToCanvas(this.canvas)
    await this.attached
    this.clear()
    this.niivue.opts.multiplanarShowRender = SHOW_RENDER.NEVER // drawing in 3D and segmenting at once would slow both
    this.niivue.addVolume(await NVImage.new(bytes.buffer, 'scan.nii', 'gray'))
    this.niivue.setSliceType(this.planes)
  }

  clear() {
    this.mask = undefined
    for (const volume of [...this.niivue.volumes]) this.niivue.removeVolume(volume)
  }

  /** A mask's bytes over the scan, looked at in its ``middle`` (mm); if one is there, only its voxels change. */
  async showMask(bytes, middle, opacity) {
    if (!this.niivue.volumes.length) return
    if (this.mask) {
      this.mask.img.set(bytes.subarray(bytes.length - this.mask.img.length))
      return this.niivue.updateGLVolume()
    }
    this.niivue.opts.multiplanarShowRender = SHOW_RENDER.ALWAYS
    if (middle) this.niivue.scene.crosshairPos = this.niivue.mm2frac(middle)
    this.mask = await NVImage.new(bytes.slice().buffer, 'mask.nii', 'red', opacity, null, 0, 1)
    this.niivue.addVolume(this.mask)
    this.niivue.createOnLocationChange()
  }

  setOpacity(opacity) {
    if (this.mask) this.niivue.setOpacity(1, opacity)
  }

  setPlanes(planes) {
    this.planes = planes
    this.niivue.setSliceType(planes)
  }
}
