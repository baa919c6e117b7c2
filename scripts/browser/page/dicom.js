// What is dropped or chosen, files and folders: NIfTI goes on as it is, of DICOM a person picks the series to segment.

import { Helper } from './ask.js'
import { html, render } from './lit-html.js'
import { gzip } from './nifti.js'

const FEWEST = 10 // voxels along each side: a localizer has fewer slices
const NOT_T2W = RegExp(`flair|tirm|stir|dark.?fl|t1|t2 ?[*]|t2.?star|swi|swan|hemo|diff|dwi|adc|trace|map|bold|perf|${
  'mip|(^|[^a-z])loc|scout'}`, 'i')
const UNSOUND = /Interslice distance varies|Missing images|order is not spatial/i
const TEXTS = [[4, 32], [148, 252], [328, 344]] // of a NIfTI-1 header: a scanner's comment may name somebody
let studies = 0

/** Of a drop, the files and those in its folders, each with its path; to be called before the drop is over. */
export function dropped(items) {
  const entries = [...items].map((item) => item.webkitGetAsEntry()).filter(Boolean)
  return Promise.all(entries.map(below)).then((found) => found.flat())
}

async function below(entry) {
  const path = entry.fullPath.slice(1)
  if (entry.isFile) return [{ path, file: await new Promise((...done) => entry.file(...done)) }]
  const reader = entry.createReader(), found = []
  for (let some; (some = await new Promise((...done) => reader.readEntries(...done))).length;) found.push(...some)
  return [{ path: `${path}/` }, ...(await Promise.all(found.map(below))).flat()]
}

/** Give NIfTI files, and files that are alone and no DICOM, to ``add``; ask in ``form`` about the rest's series. */
export async function take(found, form, { add, tell, save }) {
  const sorted = found.every(({ path }) => path.includes('/')) // else they have the order in which they were given
    ? found.toSorted((a, b) => a.path.localeCompare(b.path, 'en', { numeric: true })) : found
  const scans = [], slices = [], where = sorted[0]?.path.split('/')[0]
  for (const { path, file } of sorted.filter(({ file }) => file)) {
    if (/\.nii(\.gz)?$/i.test(path)) scans.push(file)
    else if (await file.slice(128, 132).text() === 'DICM') slices.push({ path, file })
    else if (!path.includes('/')) scans.push(file)
  }
  if (scans.length) add(scans)
  if (!slices.length && sorted.length && !scans.length) tell(`${where}: no NIfTI or DICOM file in it.`)
  if (!slices.length) return
  form.hidden = false
  render(html`<p class="hint">Converting ${slices.length} DICOM files …</p>`, form)
  const { made = [], said = [], error } = await convert(slices.map(({ file }) => file))
  const series = seriesOf(made, said, slices), cut = said.join('\n').match(/not large enough[^\n]*\/(\d+)\.dcm/)
  const none = series.map(({ title, unfit }) => `${title} has ${unfit}`).join('; ') || 'its DICOM files hold no image'
  form.hidden = series.every(({ unfit }) => unfit)
  const problem = error ?? (cut ? `${slices[cut[1]].path} is broken or not whole` : form.hidden && none)
  if (problem) tell(`${where}: ${problem}.`)
  if (!form.hidden) offer(series, form, add, save)
}

function convert(files) {
  const helper = new Helper('dicom_worker.js')
  return helper.ask('convert', { files }).catch(({ message }) => ({ error: message })).finally(() => helper.end())
}

/** Of each volume that dcm2niix made, what it is and why it is unfit: likely T2w scans first, then large ones. */
function seriesOf(made, said, slices) {
  const told = said.join('\n').split(/^Convert \d+ DICOM as \/output\/(\S+).*/m) // of each before its name
  return made.map(({ name, bytes, about }) => {
    for (const [start, end] of TEXTS) bytes.fill(0, start, end)
    const [, study, , first, more] = name.match(/^(.*?)_(\d*)_(\d+)\.dcm(.*)$/), view = new DataView(bytes.buffer)
    const sides = [1, 2, 3].map((i) => view.getInt16(40 + 2 * i, true)), volumes = view.getInt16(48, true)
    const sizes = [1, 2, 3].map((i) => Number(view.getFloat32(76 + 4 * i, true).toPrecision(2)))
    const title = `${about.SeriesNumber ?? ''} ${about.SeriesDescription ?? about.ProtocolName ?? ''}${more}`.trim()
    const unsound = UNSOUND.test(told[told.indexOf(name) - 1])
    const unfit = Math.min(...sides) < FEWEST ? `${Math.min(...sides)} slices, as localizers have`
      : volumes > 1 ? `${volumes} volumes` : unsound ? 'slices that are missing or not evenly spaced' : ''
    const te = Number(((about.EchoTime ?? 0) * 1000).toPrecision(3)), named = /t2/i.test(title)
    const t2w = !unfit && !NOT_T2W.test(title) && !about.InversionTime && about.ScanningSequence !== 'GR'
    return {
      study, title, bytes, unfit, likely: t2w && (te ? te >= 60 : named) ? 1 + named : 0,
      shown: `${sides.join('x')} voxels of ${sizes.join('x')} mm${te ? `, TE ${te} ms` : ''}.`,
      size: unfit ? 0 : bytes.length, folder: slices[first].path.split('/').slice(0, -1).join('/'),
    }
  }).sort((a, b) =>
    a.study.localeCompare(b.study) || b.likely - a.likely || b.size - a.size || (a.title < b.title ? -1 : 1))
}

/** The list of series; those picked go on under names that hold nothing of a person but what is typed there. */
function offer(series, form, add, save) {
  const fields = [...Map.groupBy(series, ({ study }) => study).values()].map((members) => {
    let { folder } = members[0] // that all of them share
    while (folder && members.some((one) => !`${one.folder}/`.startsWith(`${folder}/`))) {
      folder = folder.replace(/[/]?[^/]*$/, '')
    }
    const tag = ({ unfit, likely }, i) =>
      (unfit ? ` Not offered: it has ${unfit}.` : !i && likely ? ' Likely the T2w scan.' : '')
    return html`<fieldset><legend>Series in ${folder || 'the files'}</legend>
      ${members.map((one, i) => html`<label class="pick">
        <input type="checkbox" .series=${one} ?checked=${!i && one.likely > 0} ?disabled=${one.unfit !== ''}>
        <span>${one.title}<span class="hint">${one.shown}${tag(one, i)}</span></span></label>`)}
      <label>Name in files
        <input value="sub-${++studies}" required pattern="[A-Za-z0-9_\\-]+" spellcheck="false"></label>
    </fieldset>`
  })
  const stemOf = (box) =>
    `${box.closest('fieldset').querySelector('[required]').value}_acq-${box.series.title.replace(/[^A-Za-z0-9]/g, '')}`
  const picked = () => [...Map.groupBy(form.querySelectorAll(':checked'), stemOf)].flatMap(([stem, boxes]) =>
    boxes.map(({ series }, i) => new File([series.bytes], `${stem}${i ? `_run-${i + 1}` : ''}_T2w.nii`)))
  const keep = async () => {
    for (const file of form.reportValidity() ? picked() : []) save(await gzip(file), `${file.name}.gz`)
  }
  form.onreset = () => { // and hold no series any longer
    form.hidden = true
    form.onsubmit = form.onreset = null
    render('', form)
  }
  form.onsubmit = (event) => {
    event.preventDefault()
    const files = picked()
    if (!files.length) return
    form.onreset()
    add(files)
  }
  render(html`${fields}<p class="buttons"><button class="button">Segment</button>
    <button type="button" @click=${keep}>Save as NIfTI</button><button type="reset">Cancel</button></p>`, form)
}
