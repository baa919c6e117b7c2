// The network's work, away from the page so that it stays responsive: from a file to a mask.

import { answer } from './ask.js'
import { geometry } from './geometry.js'
import { extentOf, maskOf, midline, percentiles } from './lesions.js'
import { gzip, madeOf, voxelVolume } from './made.js'
import { readNifti } from './nifti.js'

const SLAB = 2 ** 21 // voxels of the scan that are restored at a time
let ort, card, engine, sessions, create, scan

const post = (kind, content) => self.postMessage({ news: { kind, ...content } })
/** The bar goes from one share of the work to another, probably in so many seconds, of ``left`` to the end. */
const progress = (text, from, to, seconds = 0, left = 0) => post('progress', { text, from, to, seconds, left })

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
  create = (graph, executionProviders = [provider]) => ort.InferenceSession.create(`${graph}.onnx`, {
    executionProviders, enableCpuMemArena: false, enableMemPattern: false, logSeverityLevel: 3,
  })
  sessions = {}
  for (const graph of ['prepare', 'agree', 'restore']) sessions[graph] = await create(graph, ['wasm'])
  sessions.network = await create('network')
  if (provider === 'webgpu') await probe() // that it answers at all
  engine = name
  post('engine', { name })
}

async function run(graph, inputs) {
  const results = await sessions[graph].run(inputs)
  for (const input of Object.values(inputs)) input.dispose()
  return Object.values(results)[0]
}

const tensor = (data, dims) => new ort.Tensor('float32', data, dims)
const matrix = (rows) => tensor(Float32Array.from(rows.flat()), [rows.length, rows[0].length])

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
async function segment({ file, threshold, minVolume, least }) {
  progress('Reading', 0, 0.02)
  scan = await readNifti(file)
  delete scan.bytes
  const [low, high] = scan.values.some((value) => value < 0) ? percentiles(scan.values, [2, 98]) : [0, 0]
  if (low < -0.1 * (high - low)) {
    scan.warnings.push('its values are standardized, or no MRI’s: air must be the darkest, so give the scan as it was stored')
  }
  if (!sessions) {
    progress('Loading the network', 0.02, 0.04)
    await start()
  } else post('engine', { name: engine })
  const lies = geometry(scan.affine, scan.sides, card, extentOf(scan.values, scan.sides))
  const probability = await restore(await predict(lies), lies)
  const middle = scan.sidesKnown ? midline(scan.values, scan.sides, scan.affine) : null
  delete scan.values
  const { mask, lesions } = maskOf(probability, scan.sides, threshold, minVolume, voxelVolume(scan))
  for (let i = 0; i < probability.length; i++) if (probability[i] < Math.fround(least)) probability[i] = 0
  const zipped = new Uint8Array(await file.slice(0, 1).arrayBuffer())[0] === 0x1f
  return {
    ...(await madeOf(scan, mask, lesions, middle)), middle, warnings: scan.warnings,
    file: zipped ? file : await gzip(file), probability: await gzip(probability),
  }
}

async function predict({ toScan, limits }) {
  progress('Bringing the scan to the network’s grid', 0.04, 0.08)
  const grid = card.spatial_size, voxels = grid.reduce((a, b) => a * b)
  const image = await run('prepare', {
    scan: tensor(scan.values, [1, 1, ...scan.sides.toReversed()]), to_scan: matrix(toScan), limits: matrix(limits),
  })
  const views = image.dims[0], logits = new Float32Array(views * 2 * voxels)
  let seconds = (await probe() ?? 0) * voxels
  const graph = await networkFor(image.data.slice(0, voxels), grid)
  for (let view = 0; view < views; view++) {
    const at = (i) => 0.08 + (0.82 * i) / views, text = view ? 'Segmenting its mirror image' : 'Segmenting'
    progress(text, at(view), at(view + 1), seconds, seconds * (views - view - 1))
    const began = performance.now(), part = image.data.slice(view * voxels, (view + 1) * voxels)
    const answer = await run(graph, { image: tensor(part, [1, 1, ...grid]) })
    logits.set(await answer.getData(true), view * 2 * voxels)
    seconds = (performance.now() - began) / 1000
  }
  return (await run('agree', { logits: tensor(logits, [views, 2, ...grid]), limits: matrix(limits) })).data
}

/** Which of the two graphs: beyond the card's limit that which normalizes partly by the image's own statistics. */
async function networkFor(image, grid) {
  if (card.norm_shift_limit === null) return 'network'
  sessions.shift ??= await create('shift', ['wasm'])
  const [shift] = (await run('shift', { image: tensor(image, [1, 1, ...grid]) })).data
  if (!(shift > card.norm_shift_limit)) return 'network'
  sessions.adapted ??= await create('adapted')
  return 'adapted'
}

/** The probability on the scan's own grid. */
async function restore(probability, { back }) {
  const [nx, ny, nz] = scan.sides, slices = Math.max(1, Math.floor(SLAB / (nx * ny)))
  const indices = (first, end) => tensor(Float32Array.from({ length: end - first }, (_, i) => first + i), [end - first])
  const restored = new Float32Array(nx * ny * nz)
  for (let z = 0; z < nz; z += slices) {
    const end = Math.min(nz, z + slices), share = (i) => 0.9 + (0.1 * i) / nz
    progress('Bringing the mask to the scan’s grid', share(z), share(end))
    const part = await run('restore', {
      probability: tensor(probability, [1, 1, ...card.spatial_size.map((side) => side + 2)]), back: matrix(back),
      x: indices(0, nx), y: indices(0, ny), z: indices(z, end),
    })
    restored.set(part.data, z * nx * ny)
  }
  return restored
}
