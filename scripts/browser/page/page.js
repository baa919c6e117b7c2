// The page: what a person sees and does. All work is the workers'; names of files are shown as text, never as markup.

import { Helper, latest } from './ask.js'
import { downloadZip } from './client-zip.js'
import { Corrector } from './correct.js'
import { dropped, take } from './dicom.js'
import { count, forget, keep, kept } from './keep.js'
import { Viewer } from './viewer.js'
import { derivative, describe, maskOf, sidecar, table } from './words.js'

const $ = (id) => document.getElementById(id)
const viewer = new Viewer($('canvas'), (mm) => { $('location').textContent = mm }, () => corrector.stroke(), () => corrector.click())
const scans = [] // {name, file, state, settings, and once it is done what the worker made of it}
// ``current`` is chosen, ``opened`` the one of these whose mask is in view, ``computed`` the one that the network works on
let card, network, bench, current, opened, computed, bar, engine = '', showing = Promise.resolve(), measuring
const corrector = new Corrector(
  viewer, (kind, content) => bench.ask(kind, content), () => { measuring = measure().catch(notDone) }, notDone,
)

async function start() {
  card = await (await fetch('card.json')).json()
  $('about').append(...describe(card).map(([text, loud]) => {
    const part = document.createElement(loud ? 'em' : 'span')
    part.textContent = `${text} `
    return part
  }))
  $('minVolume').max = Math.max($('minVolume').max, 2 * card.min_volume)
  $('threshold').min = Math.min($('threshold').min, card.threshold)
  $('example').hidden = !card.example
  keepForOffline()
  await showKept()
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
  const first = scans.length
  for (const file of files) scans.push({ name: file.name, file, state: 'waiting' })
  showList()
  if (!computed && scans[first]) show(scans[first])
  compute()
}

/** Files and folders with their paths, DICOM or not. */
async function takeIn(found) {
  const tell = (message) => { $('error').textContent = message }
  await take(await found, $('series'), { add, tell, save }).catch((error) => tell(`It cannot be read (${error.message}).`))
}

/** Segment what waits, one scan after the other. */
async function compute() {
  if (computed) return
  while ((computed = scans.find(({ state }) => state === 'waiting'))) await segment(computed)
}

async function segment(scan) {
  Object.assign(scan, { state: 'working', settings: { threshold: card.threshold, minVolume: card.min_volume } })
  if (!['done', 'working'].includes(current?.state)) show(scan)
  showAll()
  try {
    network ??= new Helper('worker.js', (news) => tell[news.kind](news))
    const made = await network.ask('segment', { file: scan.file, ...scan.settings, least: Number($('threshold').min) })
    finish(scan, { ...made, state: 'done', maker: { ...card.made_by, Device: engine, Precision: 'float32' } })
    if (scan === current) showing = showing.then(() => showMask(scan)).catch(notDone)
  } catch (error) {
    network?.end() // what it holds may be half a scan
    network = undefined
    if (scan.state === 'working') fail(scan, error)
  }
  showAll()
}

/** A scan's mask is there, or another. */
function finish(scan, made) {
  const { threshold, minVolume: min_volume } = scan.settings
  Object.assign(scan, made)
  scan.row = { ...scan.row, changed_by_hand: Boolean(scan.corrected), threshold, min_volume }
  scan.id ??= `${Date.now()}-${scans.indexOf(scan)}`
  keep(scan, () => scans.includes(scan)).then(showKept).catch((error) => {
    $('warning').textContent = `${scan.name}: not kept in this browser, so save its mask (${error.message})`
  })
  showAll()
}

const tell = {
  engine: ({ name }) => {
    const alone = self.crossOriginIsolated ? '' : ' This page is not isolated from others, so it may use one thread only.'
    engine = name
    $('engine').textContent = `Computed by ${name}.${alone}`
  },
  progress: (content) => { bar = { ...content, began: performance.now() }; showProgress() },
}

function fail(scan, error) {
  scan.state = 'failed'
  $('error').textContent = `${scan.name}: ${error.message}.`
}

function cancel() {
  for (const scan of scans) if (['waiting', 'working'].includes(scan.state)) scan.state = 'cancelled'
  network?.end()
  network = undefined
  $('warning').textContent = 'Cancelled.'
  showAll()
}

/** Bring a scan into view, after what was done to the one before. */
function show(scan) {
  current = scan
  for (const id of ['error', 'warning']) $(id).textContent = ''
  if (['failed', 'cancelled'].includes(scan.state)) scan.state = 'waiting'
  viewer.setPen()
  showAll()
  showing = showing.then(() => change(scan)).catch((error) => notDone(error, scan))
  compute()
}

/** What was to be done with the scan in view; a click on it brings back what there was before. */
function notDone(error, scan = current) {
  if (scan && scan === current) $('error').textContent = `${current.name}: ${error.message}.`
  bench?.end()
  bench = opened = undefined
  corrector.begin()
  showResult()
}

async function change(scan) {
  await corrector.edits
  await measuring
  opened = undefined
  viewer.clear() // no mask stays in sight under another scan's name
  corrector.begin()
  if (!scan || scan !== current) return
  bench ??= new Helper('bench.js')
  const { bytes, warnings } = await bench.ask('open', { file: scan.file })
  if (scan !== current) return
  $('warning').textContent = (scan.warnings ?? warnings).join('; ')
  $('looks').hidden = false
  await viewer.showScan(bytes).catch((error) => { // one can be segmented where it cannot be drawn, such as without WebGL
    $('warning').textContent = `Not shown: ${error.message ?? error}`
  })
  if (scan.state === 'done') await showMask(scan)
}

async function showMask(scan) {
  if (scan !== current || scan === opened) return
  const { mask, probability, middle } = scan, { mask: voxels } = await bench.ask('load', { mask, probability, middle })
  if (scan !== current) return
  $('warning').textContent = scan.warnings.join('; ')
  viewer.showMask(voxels, scan.centre)
  opened = scan
  corrector.begin(scan)
  showResult()
}

/** The mask in view under the scan's settings, in place of the one that there is. */
const remask = latest(async () => {
  const scan = opened, { voxels, ...made } = await bench.ask('mask', scan.settings)
  viewer.showMask(voxels)
  finish(scan, made)
})

/** What the mask in view comes to, corrected by hand. */
const measure = latest(async () => {
  const scan = opened, { sha256, ...made } = await bench.ask('measure')
  finish(scan, made)
})

function showAll() {
  showList()
  showResult()
  $('work').hidden = !computed || computed.state !== 'working'
}

function showProgress() {
  if (!bar || $('work').hidden) return
  const elapsed = (performance.now() - bar.began) / 1000, share = bar.seconds ? Math.min(1, elapsed / bar.seconds) : 0
  $('step').textContent = `${computed.name}: ${bar.text}`
  $('progress').value = bar.from + (bar.to - bar.from) * share
  const left = Math.ceil(Math.max(0, bar.seconds - elapsed) + bar.left)
  $('left').textContent = bar.seconds ? (left > 0 ? `about ${left} s left` : 'nearly done') : ''
}

function showResult() {
  $('saving').hidden = $('result').hidden = current?.state !== 'done'
  if ($('result').hidden) return
  const { row } = current, mL = (mm3) => (mm3 === null ? 'n/a' : `${(mm3 / 1000).toFixed(1)} mL`)
  $('volume').textContent = mL(row.lesion_volume)
  $('lesions').textContent = row.lesions
  $('onLeft').textContent = mL(row.left_volume)
  $('onRight').textContent = mL(row.right_volume)
  showSettings()
}

function showSettings() {
  const { settings, corrected } = current
  $('corrected').hidden = !corrected
  const disabled = corrected || current !== opened
  for (const [id, value] of Object.entries(settings)) Object.assign($(id), { value, disabled })
  $('thresholdShown').textContent = settings.threshold.toFixed(2)
  $('minVolumeShown').textContent = `${(settings.minVolume / 1000).toFixed(2)} mL`
}

function showList() {
  const focused = [...$('list').children].findIndex((item) => item.contains(document.activeElement))
  $('list').replaceChildren(...scans.map((scan) => {
    const button = document.createElement('button'), name = document.createElement('span')
    const state = document.createElement('span'), item = document.createElement('li')
    button.type = 'button'
    name.textContent = name.title = scan.name
    state.textContent = scan.state === 'done' ? `${(scan.row.lesion_volume / 1000).toFixed(1)} mL${scan.corrected ? ', corrected' : ''}` : scan.state
    state.className = scan.state
    button.append(name, state)
    button.setAttribute('aria-current', scan === current)
    button.disabled = scan.state === 'waiting'
    button.onclick = () => show(scan)
    item.append(button)
    return item
  }))
  $('list').children[focused]?.firstChild.focus()
}

/** What the browser's storage has, and offer what is not in the list. */
async function showKept() {
  const all = await count(), before = all - scans.filter((scan) => scan.kept).length
  $('kept').hidden = !all
  $('reopen').hidden = before < 1
  $('reopen').textContent = `Open ${before} finished before`
}

/** What is finished, as it is now. */
async function finished() {
  await corrector.edits
  await measuring
  return scans.filter(({ state }) => state === 'done')
}

function save(content, name) {
  const link = document.createElement('a')
  link.href = URL.createObjectURL(new Blob([content]))
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
$('save').onclick = async () => {
  const scan = current
  await finished()
  save(scan.mask, `${maskOf(scan)}.nii.gz`)
}
$('saveSidecar').onclick = async () => { // by its own click: of one, browsers let a page save one file only
  const scan = current
  await finished()
  save(sidecar(scan), `${maskOf(scan)}.json`)
}
$('saveTable').onclick = async () => save(table(await finished()), 'lesions.tsv')
$('saveAll').onclick = async () => save(await downloadZip(derivative(await finished())).blob(), 'lesions.zip')
for (const id of ['threshold', 'minVolume']) {
  $(id).oninput = () => {
    current.settings[id] = Number($(id).value)
    showSettings()
    corrector.wait(remask())
  }
}
$('discard').onclick = () => {
  if (!confirm(`Discard the correction of ${current.name}?`)) return
  corrector.begin()
  opened.corrected = false
  corrector.wait(remask().then(() => corrector.begin(opened)))
}
$('reopen').onclick = async () => {
  for (const scan of await kept()) if (!scans.some(({ id }) => id === scan.id)) scans.push(scan)
  if (!current && scans.length) show(scans[0])
  showAll()
  await showKept()
}
$('forget').onclick = async () => {
  if (!confirm('Delete all scans, masks and corrections from this browser?')) return
  cancel()
  scans.length = 0
  current = undefined
  showing = showing.then(() => change()).then(showAll)
  await forget()
  await showKept()
}
$('opacity').oninput = () => viewer.niivue.setDrawOpacity(Number($('opacity').value))
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
