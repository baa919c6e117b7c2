// The network's work, away from the page so that it stays responsive: from a file to a mask.

import { answer } from './ask.js'
import { headOf, madeOf, maskOf, percentiles } from './lesions.js'
import { gzip, readNifti } from './nifti.js'

const SLAB = 2 ** 21 // voxels of the scan that are restored at a time
let ort, card, engine, create, scan

/** The bar goes from one share of the work to another, probably in so many seconds, of ``left`` to the end. */
const progress = (text, from, to, seconds = 0, left = 0) =>
  self.postMessage({ news: { engine, text, from, to, seconds, left } })

answer({ segment })

async function start() {
  card = await (await fetch('card.json')).json()
  const gpu = 'Suspending' in WebAssembly && (await navigator.gpu?.requestAdapter()) // its build wants JSPI
  if (gpu && !gpu.info?.isFallbackAdapter) { // one that is no graphics card is slower than WebAssembly
    try {
      return await load('./ort.jspi.min.mjs', 'webgpu', 'WebGPU')
    } catch (error) {
      console.warn(`No WebGPU after all: ${error.message}`)
    }
  }
  const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 8) : 1
  await load('./ort.wasm.min.mjs', 'wasm', `WebAssembly, ${threads} thread${threads > 1 ? 's' : ''}`, threads)
}

async function load(runtime, provider, name, threads = 1) {
  ort = await import(runtime)
  Object.assign(ort.env.wasm, { wasmPaths: new URL('./', self.location.href).href, numThreads: threads })
  const sessions = {}
  create = async (graph) => (sessions[graph] ??= await ort.InferenceSession.create(`${graph}.onnx`, {
    executionProviders: [['network', 'adapted'].includes(graph) ? provider : 'wasm'],
    enableCpuMemArena: false, enableMemPattern: false, logSeverityLevel: 3,
  }))
  await create('network')
  if (provider === 'webgpu') await probe() // that it answers at all
  engine = name
}

/** What a graph of scripts/browser/graphs.py makes of its inputs, each a tensor: its outputs by their names. */
const run = async (graph, inputs) => (await create(graph)).run(inputs)

const tensor = (data, dims, type = 'float32') => new ort.Tensor(type, data, dims)
const doubles = (numbers, dims) => tensor(Float64Array.from(numbers), dims, 'float64')

/** Seconds that the network takes for a voxel, from a small part of its grid; null if it takes whole grids only. */
async function probe() {
  const sides = card.spatial_size.map((side) => Math.min(side, 24)), voxels = sides.reduce((a, b) => a * b)
  const began = performance.now()
  try {
    await run('network', { image: tensor(new Float32Array(voxels), [1, 1, ...sides]) })
  } catch {
    return null
  }
  return (performance.now() - began) / 1000 / voxels
}

/**
 * The mask of a scan under its settings; and, compressed, the scan and its probability, which is 0 where it is below
 * ``least``: no mask of a threshold that can be chosen is another for it.
 */
async function segment({ file, least, ...settings }) {
  progress('Reading', 0, 0.02)
  scan = await readNifti(file)
  delete scan.bytes
  const [low, high] = scan.values.some((value) => value < 0) ? percentiles(scan.values, [2, 98]) : [0, 0]
  if (low < -0.1 * (high - low)) {
    const why = 'air must be the darkest, so give the scan as it was stored'
    scan.warnings.push(`its values are standardized, or no MRI’s: ${why}`)
  }
  if (!engine) {
    progress('Loading the network', 0.02, 0.04)
    await start()
  }
  const affine = doubles(scan.affine.slice(0, 3).flat(), [3, 4])
  const probability = await predict(affine)
  const mask = maskOf(probability, scan, settings)
  const head = scan.sidesKnown && tensor(headOf(scan.values, scan.sides), scan.sides.toReversed(), 'bool')
  const middle = head ? (await run('midline', { head, affine })).middle.data[0] : null
  delete scan.values
  for (let i = 0; i < probability.length; i++) if (probability[i] < Math.fround(least)) probability[i] = 0
  const zipped = new Uint8Array(await file.slice(0, 1).arrayBuffer())[0] === 0x1f
  return {
    ...(await madeOf(scan, mask, middle)), middle, warnings: scan.warnings,
    file: zipped ? file : await gzip(file), probability: await gzip(probability),
  }
}

async function predict(affine) {
  progress('Bringing the scan to the network’s grid', 0.04, 0.08)
  const grid = card.spatial_size, voxels = grid.reduce((a, b) => a * b)
  const volume = tensor(scan.values, [1, 1, ...scan.sides.toReversed()])
  const { means } = await run('coarse', { scan: volume })
  const head = tensor(headOf(means.data, means.dims.toReversed()), means.dims, 'bool')
  const { to_scan, back, limits } = await run('place', { affine, sides: doubles(scan.sides, [3]), head })
  const { image } = await run('prepare', { scan: volume, to_scan, limits })
  const views = image.dims[0], logits = new Float32Array(views * 2 * voxels)
  let seconds = (await probe() ?? 0) * voxels
  const graph = await networkFor(image.data.slice(0, voxels), grid)
  for (let view = 0; view < views; view++) {
    const at = (i) => 0.08 + (0.82 * i) / views, text = view ? 'Segmenting its mirror image' : 'Segmenting'
    progress(text, at(view), at(view + 1), seconds, seconds * (views - view - 1))
    const began = performance.now(), part = image.data.slice(view * voxels, (view + 1) * voxels)
    const [answer] = Object.values(await run(graph, { image: tensor(part, [1, 1, ...grid]) }))
    logits.set(await answer.getData(true), view * 2 * voxels)
    seconds = (performance.now() - began) / 1000
  }
  const { probability } = await run('agree', { logits: tensor(logits, [views, 2, ...grid]), limits })
  return restore(probability, back)
}

/** Which of the two graphs: beyond the card's limit that which normalizes partly by the image's own statistics. */
async function networkFor(image, grid) {
  if (card.norm_shift_limit === null) return 'network'
  const { nats } = await run('shift', { image: tensor(image, [1, 1, ...grid]) })
  return nats.data[0] > card.norm_shift_limit ? 'adapted' : 'network'
}

/** The probability on the scan's own grid. */
async function restore(probability, back) {
  const [nx, ny, nz] = scan.sides, slices = Math.max(1, Math.floor(SLAB / (nx * ny)))
  const indices = (first, end) => tensor(Float32Array.from({ length: end - first }, (_, i) => first + i), [end - first])
  const restored = new Float32Array(nx * ny * nz), x = indices(0, nx), y = indices(0, ny)
  for (let z = 0; z < nz; z += slices) {
    const end = Math.min(nz, z + slices), share = (i) => 0.9 + (0.1 * i) / nz
    progress('Bringing the mask to the scan’s grid', share(z), share(end))
    const part = await run('restore', { probability, back, x, y, z: indices(z, end) })
    restored.set(part.restored.data, z * nx * ny)
  }
  return restored
}
