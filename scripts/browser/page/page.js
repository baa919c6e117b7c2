// The page: what a person sees and does. All work is the workers'; names of files are shown as text, never as markup.

import { Helper, inTurn, latest } from './ask.js'
import { downloadZip } from './client-zip.js'
import { Corrector } from './correct.js'
import { dropped, take } from './dicom.js'
import { count, forget, keep, kept } from './keep.js'
import { html, render } from './lit-html.js'
import { Viewer } from './viewer.js'
import { derivative, maskOf, sidecar, table } from './words.js'

const $ = (id) => document.getElementById(id)
const say = (id, text) => { $(id).textContent = text }
const viewer = new Viewer($('canvas'), (mm) => say('location', mm), () => corrector.stroke(), () => corrector.click())
const scans = [] // {name, file, state, settings, and once it is done what the worker made of it}
// ``current`` is chosen, ``opened`` that whose mask is in view, ``computed`` that which the network works on
let card, network, bench, current, opened, computed, bar, measuring
const queue = inTurn()
/** Do something with the scan in view, when all is done that was to be done before. */
const inView = (act, scan = current) => queue(act).catch((error) => notDone(error, scan))
const ask = (kind, content) => bench.ask(kind, content)
const corrector = new Corrector(viewer, inView, ask, () => { measuring = measure().catch(notDone) })

async function start() {
  card = await (await fetch('card.json')).json()
  render(card.sentences.map(([text, loud]) => (loud ? html`<em>${text}</em> ` : text)), $('about'))
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
  showAll()
  if (!computed && scans[first]) show(scans[first])
  compute()
}

/** Files and folders with their paths, DICOM or not. */
async function takeIn(found) {
  say('error', '')
  await take(await found, $('series'), { add, tell: blame, save })
    .catch(({ message }) => blame(`It cannot be read (${message}).`))
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
    network ??= new Helper('worker.js', hear)
    const made = await network.ask('segment', { file: scan.file, ...scan.settings, least: Number($('threshold').min) })
    finish(scan, { ...made, state: 'done', maker: { ...card.made_by, Device: bar.engine, Precision: 'float32' } })
    if (scan === current) inView(() => showMask(scan))
  } catch (error) {
    endNetwork() // what it holds may be half a scan
    if (scan.state === 'working') {
      scan.state = 'failed'
      blame(`${scan.name}: ${error.message}.`)
    }
  }
  showAll()
}

function endNetwork() {
  network?.end()
  network = undefined
}

/** A scan's mask is there, or another. */
function finish(scan, made) {
  const { threshold, minVolume: min_volume } = scan.settings
  Object.assign(scan, made)
  scan.row = { ...scan.row, changed_by_hand: Boolean(scan.corrected), threshold, min_volume }
  scan.id ??= `${Date.now()}-${scans.indexOf(scan)}`
  keep(scan, () => scans.includes(scan)).then(showKept).catch(({ message }) =>
    say('warning', `${scan.name}: not kept in this browser, so save its mask (${message})`))
  showAll()
}

/** How far the network is, and once it is loaded, what computes it. */
function hear(news) {
  const why = self.crossOriginIsolated ? '' : ' This page is not isolated from others, so it may use one thread only.'
  bar = { ...news, began: performance.now() }
  if (bar.engine) say('engine', `Computed by ${bar.engine}.${why}`)
  showProgress()
}

/** A line of what went wrong, which stays while other scans go on, until a person does something new. */
function blame(line) {
  const others = $('error').textContent.split('\n').filter((other) => other && other !== line)
  say('error', [...others, line].join('\n'))
}

function cancel() {
  for (const scan of scans) if (['waiting', 'working'].includes(scan.state)) scan.state = 'cancelled'
  endNetwork()
  say('warning', 'Cancelled.')
  showAll()
}

function choose(scan) {
  say('error', '')
  if (scan !== current || scan !== opened) show(scan)
}

/** Bring a scan into view, after what was done to the one before. */
function show(scan) {
  current = scan
  say('warning', '')
  if (['failed', 'cancelled'].includes(scan.state)) scan.state = 'waiting'
  viewer.setPen()
  showAll()
  inView(() => change(scan))
  compute()
}

/** What was to be done with the scan in view; a click on it brings back what there was before. */
function notDone(error, scan = current) {
  if (scan && scan === current) blame(`${scan.name}: ${error.message}.`)
  bench?.end()
  bench = opened = undefined
  corrector.begin()
  showAll()
}

async function change(scan) {
  await measuring
  opened = undefined
  viewer.clear() // no mask stays in sight under another scan's name
  corrector.begin()
  if (!scan || scan !== current) return
  bench ??= new Helper('bench.js')
  const { bytes, warnings } = await bench.ask('open', { file: scan.file })
  if (scan !== current) return
  say('warning', (scan.warnings ?? warnings).join('; '))
  $('looks').hidden = false
  await viewer.showScan(bytes).catch((error) => // one can be segmented where it cannot be drawn, such as without WebGL
    say('warning', `Not shown: ${error.message ?? error}`))
  if (scan.state === 'done') await showMask(scan)
}

async function showMask(scan) {
  if (scan !== current || scan === opened) return
  const { mask, probability, middle } = scan, { mask: voxels } = await bench.ask('load', { mask, probability, middle })
  if (scan !== current) return
  say('warning', scan.warnings.join('; '))
  viewer.showMask(voxels, scan.centre)
  opened = scan
  corrector.begin(scan)
  showAll()
}

/** The mask in view under the scan's settings, in place of the one that there is. */
const remask = latest(inView, async () => {
  const scan = opened, { voxels, ...made } = await bench.ask('mask', scan.settings)
  viewer.showMask(voxels)
  finish(scan, made)
})

/** What the mask in view comes to, corrected by hand. */
const measure = latest(inTurn(), async () => finish(opened, await bench.ask('measure')))

const mL = (mm3, digits = 1) => (mm3 === null ? 'n/a' : `${(mm3 / 1000).toFixed(digits)} mL`)
const stateOf = ({ state, row, corrected }) =>
  (state === 'done' ? mL(row.lesion_volume) + (corrected ? ', corrected' : '') : state)

function showAll() {
  render(scans.map((scan) => html`<li><button type="button" aria-current=${scan === current}
    ?disabled=${scan.state === 'waiting'} @click=${() => choose(scan)}><span title=${scan.name}>${scan.name}</span><span
    class=${scan.state}>${stateOf(scan)}</span></button></li>`), $('list'))
  $('work').hidden = computed?.state !== 'working'
  $('saving').hidden = $('result').hidden = current?.state !== 'done'
  if ($('result').hidden) return
  const { row } = current
  say('volume', mL(row.lesion_volume))
  say('lesions', row.lesions)
  say('onLeft', mL(row.left_volume))
  say('onRight', mL(row.right_volume))
  showSettings()
}

function showSettings() {
  const { settings, corrected } = current, disabled = corrected || current !== opened
  $('corrected').hidden = !corrected
  for (const [id, value] of Object.entries(settings)) Object.assign($(id), { value, disabled })
  say('thresholdShown', settings.threshold.toFixed(2))
  say('minVolumeShown', mL(settings.minVolume, 2))
}

function showProgress() {
  if (!bar || $('work').hidden) return
  const elapsed = (performance.now() - bar.began) / 1000, share = bar.seconds ? Math.min(1, elapsed / bar.seconds) : 0
  const left = Math.ceil(Math.max(0, bar.seconds - elapsed) + bar.left)
  say('step', `${computed.name}: ${bar.text}`)
  $('progress').value = bar.from + (bar.to - bar.from) * share
  say('left', bar.seconds ? (left > 0 ? `about ${left} s left` : 'nearly done') : '')
}

/** What the browser's storage has, and offer what is not in the list. */
async function showKept() {
  const all = await count(), before = all - scans.filter((scan) => scan.kept).length
  $('kept').hidden = !all
  $('reopen').hidden = before < 1
  say('reopen', `Open ${before} finished before`)
}

/** What is finished, as it is now. */
async function finished() {
  await inView(() => measuring)
  return scans.filter(({ state }) => state === 'done')
}

function save(content, name) {
  const link = document.createElement('a')
  link.href = URL.createObjectURL(new Blob([content]))
  link.download = name
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000)
}

/** Save a file of the scan in view by its own click: of one, browsers let a page save one file only. */
async function saveOne(contentOf, ending) {
  const scan = current
  await finished()
  save(contentOf(scan), `${maskOf(scan)}.${ending}`)
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
$('save').onclick = () => saveOne(({ mask }) => mask, 'nii.gz')
$('saveSidecar').onclick = () => saveOne(sidecar, 'json')
$('saveTable').onclick = async () => save(table(await finished()), 'lesions.tsv')
$('saveAll').onclick = async () => save(await downloadZip(derivative(await finished())).blob(), 'lesions.zip')
for (const id of ['threshold', 'minVolume']) {
  $(id).oninput = () => {
    current.settings[id] = Number($(id).value)
    showSettings()
    remask()
  }
}
$('discard').onclick = () => {
  if (!confirm(`Discard the correction of ${current.name}?`)) return
  corrector.begin()
  opened.corrected = false
  remask().then(() => corrector.begin(opened))
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
  inView(() => change()).then(showAll)
  await forget()
  await showKept()
}
$('opacity').oninput = () => viewer.niivue.setDrawOpacity(Number($('opacity').value))
$('slices').onchange = () => viewer.niivue.setSliceType(Number($('slices').value))
document.ondragover = (event) => { event.preventDefault(); document.body.classList.add('dropping') }
document.ondragleave = () => document.body.classList.remove('dropping')
document.ondrop = (event) => {
  event.preventDefault()
  document.body.classList.remove('dropping')
  takeIn(dropped(event.dataTransfer.items))
}
setInterval(showProgress, 250)
start()
