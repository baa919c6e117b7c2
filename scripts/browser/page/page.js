// The page: what a person sees and does. All work is the worker's; names of files are shown as text, never as markup.

import { dropped, take } from './dicom.js'
import { gzip } from './nifti.js'
import { Viewer } from './viewer.js'
import { describe, stem, table } from './words.js'

const $ = (id) => document.getElementById(id)
const viewer = new Viewer($('canvas'), (mm) => { $('location').textContent = mm })
const scans = [] // {name, file, state, probability, row, mask}
let card, worker, current, bar, turn = 0, asked = false, wanted, drawn = Promise.resolve()

async function start() {
  card = await (await fetch('card.json')).json()
  $('about').append(...describe(card).map(([text, loud]) => {
    const part = document.createElement(loud ? 'em' : 'span')
    part.textContent = `${text} `
    return part
  }))
  $('threshold').value = card.threshold
  $('minVolume').max = Math.max($('minVolume').max, 2 * card.min_volume)
  $('minVolume').value = card.min_volume
  showSettings()
  $('example').hidden = !card.example
  keepForOffline()
}

/** The service worker keeps the page for use without a network, and gives it the headers that threads need. */
async function keepForOffline() {
  if (!('serviceWorker' in navigator)) return
  await navigator.serviceWorker.register('service_worker.js')
  await navigator.serviceWorker.ready
  document.body.dataset.offline = 'ready'
  if (self.crossOriginIsolated || scans.length || sessionStorage.getItem('reloaded')) return
  sessionStorage.setItem('reloaded', 'once')
  location.reload()
}

function add(files) {
  for (const file of files) scans.push({ name: file.name, file, state: 'waiting' })
  showList()
  if (!current || current.state !== 'working') next()
}

/** Files and folders with their paths, DICOM or not. */
async function takeIn(found) {
  const tell = (message) => { $('error').textContent = message }
  await take(await found, $('series'), { add, tell, save }).catch((error) => tell(`It cannot be read (${error.message}).`))
}

function next() {
  const scan = scans.find(({ state }) => state === 'waiting')
  if (scan) open(scan)
}

function open(scan) {
  current = scan
  turn++ // a mask of the scan before that is still to come is not this one's
  asked = wanted = false
  scan.state = 'working'
  for (const id of ['error', 'warning']) $(id).textContent = ''
  $('result').hidden = true
  $('work').hidden = false
  drawn = drawn.then(() => viewer.clear()) // no mask stays in sight under another scan's name
  showList()
  worker ??= startWorker()
  worker.postMessage({ kind: 'open', turn, file: scan.file, probability: scan.probability })
}

function startWorker() {
  const made = new Worker('worker.js', { type: 'module' })
  made.onmessage = ({ data }) => { if (made === worker && data.turn === turn) answers[data.kind](data) }
  made.onerror = (event) => { if (made === worker) fail(`it could not be segmented (${event.message})`) }
  return made
}

const answers = {
  engine: ({ name }) => {
    const alone = self.crossOriginIsolated ? '' : ' This page is not isolated from others, so it may use one thread only.'
    $('engine').textContent = `Computed by ${name}.${alone}`
  },
  progress: (content) => { bar = { ...content, began: performance.now() }; showProgress() },
  scan: ({ bytes, warnings }) => {
    $('warning').textContent = warnings.join('; ')
    $('looks').hidden = false
    drawn = drawn.then(() => viewer.showScan(bytes)).catch(notShown)
  },
  segmented: ({ probability }) => {
    current.probability = probability
    askForMask()
  },
  mask: ({ bytes, row, middle }) => {
    asked = false
    Object.assign(current, { state: 'done', mask: bytes, row })
    $('work').hidden = true
    showResult()
    showList()
    drawn = drawn.then(() => viewer.showMask(bytes, middle, Number($('opacity').value))).catch(notShown)
    if (wanted) askForMask()
    else next()
  },
  error: ({ message }) => fail(message),
}

/** A scan can be segmented where it cannot be drawn, such as without WebGL. */
function notShown(error) {
  $('warning').textContent = `Not shown: ${error.message ?? error}`
}

function fail(message) {
  Object.assign(current, { state: 'failed' })
  asked = false
  worker.terminate() // what it holds may be half a scan
  worker = undefined
  $('work').hidden = true
  $('error').textContent = `${current.name}: ${message}.`
  showList()
  next()
}

function cancel() {
  worker?.terminate()
  worker = undefined
  for (const scan of scans) if (['waiting', 'working'].includes(scan.state)) scan.state = 'cancelled'
  $('work').hidden = true
  $('warning').textContent = 'Cancelled.'
  showList()
}

/** One question at a time; the last value of a slider is asked for when the answer is there. */
function askForMask() {
  wanted = asked
  if (asked) return
  asked = true
  worker.postMessage({ kind: 'mask', threshold: Number($('threshold').value), minVolume: Number($('minVolume').value) })
}

function showProgress() {
  if (!bar || $('work').hidden) return
  const elapsed = (performance.now() - bar.began) / 1000, share = bar.seconds ? Math.min(1, elapsed / bar.seconds) : 0
  $('step').textContent = `${current.name}: ${bar.text}`
  $('progress').value = bar.from + (bar.to - bar.from) * share
  const left = Math.ceil(Math.max(0, bar.seconds - elapsed) + bar.left)
  $('left').textContent = bar.seconds ? (left > 0 ? `about ${left} s left` : 'nearly done') : ''
}

function showSettings() {
  $('thresholdShown').textContent = Number($('threshold').value).toFixed(2)
  $('minVolumeShown').textContent = `${(Number($('minVolume').value) / 1000).toFixed(2)} mL`
}

function showResult() {
  const { row } = current, mL = (mm3) => (mm3 === null ? 'n/a' : `${(mm3 / 1000).toFixed(1)} mL`)
  $('volume').textContent = mL(row.lesion_volume)
  $('lesions').textContent = row.lesions
  $('onLeft').textContent = mL(row.left_volume)
  $('onRight').textContent = mL(row.right_volume)
  $('result').hidden = false
}

function showList() {
  $('list').replaceChildren(...scans.map((scan) => {
    const button = document.createElement('button'), name = document.createElement('span')
    const state = document.createElement('span'), item = document.createElement('li')
    button.type = 'button'
    name.textContent = name.title = scan.name
    state.textContent = scan.state === 'done' ? `${(scan.row.lesion_volume / 1000).toFixed(1)} mL` : scan.state
    state.className = scan.state
    button.append(name, state)
    button.setAttribute('aria-current', scan === current)
    button.disabled = scan.state === 'waiting'
    button.onclick = () => { if (current.state !== 'working') open(scan) }
    item.append(button)
    return item
  }))
}

function save(blob, name) {
  const link = document.createElement('a')
  link.href = URL.createObjectURL(blob)
  link.download = name
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000)
}

for (const id of ['files', 'folder']) {
  $(id).onchange = () => {
    takeIn([...$(id).files].map((file) => ({ file, path: file.webkitRelativePath || file.name })))
    $(id).value = ''
  }
}
$('example').onclick = async () => {
  const blob = await (await fetch('example_T2w.nii.gz')).blob()
  add([new File([blob], 'example_T2w.nii.gz')])
}
$('cancel').onclick = cancel
$('save').onclick = async () => save(await gzip(current.mask), `${stem(current.name)}_desc-lesion_mask.nii.gz`)
$('saveTable').onclick = () => save(new Blob([table(scans.filter((scan) => scan.row))], { type: 'text/tab-separated-values' }), 'lesions.tsv')
for (const id of ['threshold', 'minVolume']) $(id).oninput = () => { showSettings(); askForMask() }
$('opacity').oninput = () => viewer.setOpacity(Number($('opacity').value))
$('slices').onchange = () => viewer.setPlanes(Number($('slices').value))
document.ondragover = (event) => { event.preventDefault(); document.body.classList.add('dropping') }
document.ondragleave = () => document.body.classList.remove('dropping')
document.ondrop = (event) => {
  event.preventDefault()
  document.body.classList.remove('dropping')
  takeIn(dropped(event.dataTransfer.items))
}
setInterval(showProgress, 250)
start()
