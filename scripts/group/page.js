// The page of all scans: what a person sees and decides. Names and notes are shown as text, never as markup.
'use strict'

const $ = (selector) => document.querySelector(selector)
const { dataset, rows, overlap } = JSON.parse($('#data').textContent)
const STORE = `lesion decisions ${dataset}`
const WORDS = { accept: '✓ accepted', reject: '✕ rejected', correct: '✎ to correct', '': 'undecided' }
const EDGES = [0, 1, 2, 5, 10, 20, 50, 100, 200] // mL, of the histogram
let current, keeps = true // whether this browser keeps decisions

const make = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties)
  element.append(...children)
  return element
}
const list = (name, parts) => $(name).replaceChildren(...Object.entries(parts).map(([key, [value, small]]) =>
  make('div', {}, make('dt', {}, key), make('dd', {}, value, make('small', {}, small || '')))))
const told = (value, digits = 0, unit = '') => (value === null ? 'n/a' : value.toLocaleString('en',
  { minimumFractionDigits: digits, maximumFractionDigits: digits }) + unit)
const mL = (volume, unit = '') => (volume > 0 && volume < 50 ? `<0.1${unit}`
  : told(volume === null ? null : volume / 1000, 1, unit))
const side = ({ laterality }) => (laterality === null ? 'n/a' : laterality === 0 ? 'even'
  : `${told(50 + 50 * Math.abs(laterality))} % ${laterality > 0 ? 'left' : 'right'}`)

/* What was decided: as the file said when the page was made, and in this browser since. */

function read() {
  try {
    return JSON.parse(localStorage.getItem(STORE)) ?? {}
  } catch {
    keeps = false
    return {}
  }
}

/** Keep what was decided of some rows, with what it was decided on. */
function keep(some, saved = false) {
  const kept = read() // another tab may have written
  for (const row of some) {
    const { mask, decision, note, base, about } = Object.assign(row, { unsaved: !saved })
    kept[mask] = { decision, note, base, about, saved }
    fill(row, 'unusual', 'decision')
  }
  try {
    localStorage.setItem(STORE, JSON.stringify(kept))
  } catch {
    keeps = false
  }
  summarize()
}

function prepare(row, mine) {
  row.byHand = `${row.changed_by_hand}` === 'true'
  row.who = row.participant_id ?? row.mask.split('/').pop().replace('_desc-lesion_mask.nii.gz', '')
  const entity = (key, value) => value && `${key}-${`${value}`.replace(`${key}-`, '')}`
  row.what = [row.session_id, entity('acq', row.acq), entity('run', row.run)].filter(Boolean).join(' ')
  const { mask_sha256: sha256, lesion_volume: volume, lesions, laterality, weights, threshold } = row
  row.about = JSON.stringify([sha256, volume, lesions, laterality, weights, threshold])
  row.base = JSON.stringify([row.decision, row.note])
  Object.assign(row, { decision: row.decision ?? '', note: (row.note ?? '').replace(/^'(?=[=+\-@])/, ''), earlier: '' })
  if (!mine || (mine.saved && mine.base !== row.base)) return // else the file is newer
  Object.assign(row, { decision: mine.decision, note: mine.note, unsaved: !mine.saved })
  if (mine.about !== row.about) Object.assign(row, { decision: '', earlier: mine.decision }) // the mask is another
}

/* The list. Columns: heading, what it sorts by (null comes last), direction of the first click, what a cell shows. */

const COLUMNS = {
  thumb: ['', null, 0, ({ picture }) => [picture ? make('img', { alt: '', decoding: 'async' }) : make('i')]],
  name: ['Scan', (row) => `${row.who} ${row.what}`, 1,
    (row) => [row.button = make('button', { type: 'button' }, row.who), make('small', {}, row.what)]],
  volume: ['mL', (row) => row.lesion_volume, -1, (row) => [mL(row.lesion_volume)]],
  parts: ['Parts', (row) => row.lesions, -1, (row) => [told(row.lesions)]],
  sides: ['Left/right', (row) => row.laterality, -1, (row) => [side(row), ...balance(row.laterality)]],
  quality: ['Quality', (row) => row.quality, 1, (row) => [told(row.quality, 2)]],
  unusual: ['Unusual', (row) => 2 * !!row.unusual + row.byHand, -1, (row) =>
    [row.unusual && 'unusual', row.byHand && 'by hand', row.earlier && 'new mask']
      .filter(Boolean).map((text) => make('b', {}, text))],
  decision: ['Decision', (row) => Object.keys(WORDS).indexOf(row.decision), 1, (row) =>
    [make('span', { className: row.decision || 'undecided' }, WORDS[row.decision]), make('small', {}, row.note)]],
}
const KEYS = Object.keys(COLUMNS)
const fill = (row, ...keys) => keys.forEach((key) =>
  row.line.cells[KEYS.indexOf(key)].replaceChildren(...COLUMNS[key][3](row)))
const shown = () => rows.filter((row) => !row.line.hidden)

/** A bar from the middle to the side where more of the lesion is. */
function balance(laterality) {
  if (laterality === null) return []
  const bar = make('span')
  bar.style[laterality > 0 ? 'left' : 'right'] = `${50 - 50 * Math.abs(laterality)}%`
  return [make('div', {}, bar)]
}

function build() {
  const near = new IntersectionObserver((entries) => { // a picture is unpacked when it comes near
    for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
      target.src = target.row.picture
      near.unobserve(target)
    }
  }, { rootMargin: '300px' })
  $('thead tr').append(...KEYS.map((key) => make('th', { className: key, scope: 'col' }, ...(COLUMNS[key][1]
    ? [make('button', { type: 'button', onclick: () => sort(key) }, COLUMNS[key][0])] : []))))
  for (const row of rows) {
    row.line = make('tr', { onclick: () => choose(row) }, ...KEYS.map((key) => make('td', { className: key })))
    fill(row, ...KEYS)
    row.line.querySelectorAll('img').forEach((image) => near.observe(Object.assign(image, { row })))
  }
}

function sort(key) {
  const [, value, first] = COLUMNS[key], header = $(`th.${key}`)
  const direction = header.ariaSort ? (header.ariaSort === 'ascending' ? -1 : 1) : first
  const order = (x, y, way) => (x === null || y === null ? (x === null) - (y === null)
    : way * (x.localeCompare?.(y, 'en', { numeric: true }) ?? x - y))
  rows.sort((a, b) => order(value(a), value(b), direction) || order(...[a, b].map(COLUMNS.name[1]), 1))
  document.querySelectorAll('th').forEach((other) => other.removeAttribute('aria-sort'))
  header.ariaSort = direction > 0 ? 'ascending' : 'descending'
  $('tbody').append(...rows.map((row) => row.line))
  if (current) place()
}

function filter() {
  const words = $('#words').value.toLowerCase().split(/\s+/), which = $('#which').value
  for (const row of rows) {
    const said = [row.unusual && `unusual ${row.unusual}`, row.byHand && 'by hand', row.lesions === 0 && 'no lesion']
    const all = [row.who, row.what, row.mask, row.scan, row.note, side(row), ...said].filter(Boolean)
    const text = all.join(' ').toLowerCase()
    row.line.hidden = !words.every((word) => text.includes(word)) || !['all', row.decision].includes(which)
  }
  if (current.line.hidden && shown().length) choose(shown()[0])
  place()
}

function place() {
  const there = shown()
  $('#scan').hidden = !there.length
  $('#none').hidden = there.length
  $('#place').textContent = `${there.indexOf(current) + 1} of ${there.length}`
}

/* The chosen scan. */

function choose(row) {
  current?.line.removeAttribute('aria-current')
  current = row
  row.line.ariaCurrent = 'true'
  $('#name').textContent = COLUMNS.name[1](row)
  const alt = `Slices of ${row.who} with the mask's outline`
  $('#picture').replaceChildren(row.picture ? make('img', { src: row.picture, alt }) : 'No picture of this scan')
  $('#warning').textContent = [row.unusual && `Unlike the scans that the weights were trained on: ${row.unusual}.`,
    row.byHand && 'The mask was changed by hand.',
    row.earlier && `This mask is new; an earlier one was ${WORDS[row.earlier].slice(2)}.`].filter(Boolean).join(' ')
  $('#note').value = row.note
  list('#facts', {
    Volume: [mL(row.lesion_volume, ' mL')], Parts: [told(row.lesions)], Left: [mL(row.left_volume, ' mL')],
    Right: [mL(row.right_volume, ' mL')], Quality: [told(row.quality, 2)], Threshold: [`${row.threshold ?? 'n/a'}`],
    'Smallest lesion': [told(row.min_volume, 0, ' mm³')], Weights: [row.weights ?? 'n/a'], Mask: [row.mask],
  })
  for (const button of $('#decide').children) button.ariaPressed = `${button.dataset.decision === row.decision}`
  place()
  draw()
}

function move(step) {
  const there = shown(), row = there[Math.min(Math.max(there.indexOf(current) + step, 0), there.length - 1)]
  if (!row) return
  choose(row)
  $('#review').scrollIntoView()
  row.button.focus({ preventScroll: true })
  row.line.scrollIntoView({ block: 'nearest' })
}

function decide(decision) {
  if ($('#scan').hidden) return
  keep([Object.assign(current, { decision, earlier: '' })])
  choose(current)
}

/* All scans together; rejected ones are not counted. */

function summarize() {
  const n = (test) => rows.filter(test).length
  const parts = Object.keys(WORDS).map((decision) => [decision, n((row) => row.decision === decision)])
  $('#bar').replaceChildren(...parts.filter(([decision]) => decision).map(([decision, many]) => {
    const part = make('span', { className: decision })
    part.style.width = `${100 * many / rows.length}%`
    return part
  }))
  $('#count').textContent = parts.map(([decision, many]) => `${many} ${WORDS[decision].replace(/^. /, '')}`).join(', ')
  const unsaved = n((row) => row.unsaved)
  $('#save').textContent = `Save decisions.tsv${unsaved ? ` (${unsaved} new)` : ''}`
  if (!keeps) $('#said').textContent = 'This browser keeps no decisions. Save them before you close this page.'
  const counted = rows.filter((row) => row.decision !== 'reject'), many = (test) => `${counted.filter(test).length}`
  const volumes = counted.map((row) => row.lesion_volume).filter((volume) => volume !== null).sort((a, b) => a - b)
  const at = (share, unit) => { // between two scans, as NumPy has it
    const i = share * (volumes.length - 1), low = Math.floor(i), [x, y = x] = volumes.slice(low, low + 2)
    return mL(volumes.length ? x + (i - low) * (y - x) : null, unit)
  }
  const people = new Set(counted.map((row) => row.participant_id).filter(Boolean)).size
  const rejected = rows.length - counted.length
  list('#numbers', {
    Scans: [`${counted.length}`, rejected ? `${rejected} rejected, not counted` : people && `${people} participants`],
    'Median volume': [at(0.5, ' mL'), `half have ${at(0.25)} to ${at(0.75)}`],
    'Without a lesion': [many((row) => row.lesions === 0)],
    'Left / right': [`${many((row) => row.laterality > 0)} / ${many((row) => row.laterality < 0)}`, 'the larger part'],
    Unusual: [many((row) => row.unusual), 'unlike training scans'], 'Changed by hand': [many((row) => row.byHand)],
  })
  draw()
}

function draw() {
  const bin = ({ lesion_volume: volume }) => volume && EDGES.filter((edge) => volume >= 1000 * edge).length
  const counted = rows.filter((row) => row.decision !== 'reject'), here = current && bin(current)
  const counts = ['none', ...EDGES].map((_, i) => counted.filter((row) => bin(row) === i).length)
  const shape = (tag, attributes, text) => {
    const element = document.createElementNS('http://www.w3.org/2000/svg', tag)
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value)
    element.textContent = text
    return element
  }
  $('#histogram').replaceChildren(...counts.flatMap((count, i) => {
    const x = i ? 12 + 42 * i : 4, height = 140 * count / Math.max(...counts, 1)
    return [shape('rect', { x: x + 2, y: 160 - height, width: 38, height, class: here === i ? 'current' : '' }),
      shape('text', { x: x + 21, y: 155 - height }, count || ''),
      shape('text', { x: i ? x : x + 21, y: 177 }, i ? EDGES[i - 1] : 'none')]
  }), shape('path', { d: 'M4 160.5h42m8 0h378' }))
  const told = counts.map((count, i) => `${i ? `from ${EDGES[i - 1]} mL` : 'without a lesion'}: ${count}`)
  $('#histogram').ariaLabel = `Scans ${told.join(', ')}`
}

/* decisions.tsv: quotes as in CSV; a note that a spreadsheet would compute gets an apostrophe. */

const quoted = (text) => (/["\t\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text || 'n/a')
const inLine = (note) => note.replace(/[\0-\x1f\u2028\u2029]+/g, ' ').trim().replace(/^(?=[=+\-@])/, "'")

function save() {
  const some = rows.filter((row) => row.decision || row.note)
  const lines = some.map((row) => [row.mask, row.decision, inLine(row.note), row.mask_sha256].map(quoted).join('\t'))
  const href = URL.createObjectURL(new Blob([['mask\tdecision\tnote\tmask_sha256', ...lines, ''].join('\n')]))
  make('a', { download: 'decisions.tsv', href }).click()
  setTimeout(() => URL.revokeObjectURL(href), 60000)
  keep(rows.filter((row) => row.decision || row.note || row.unsaved), true)
  $('#said').textContent = `${some.length} in your downloads. Put decisions.tsv beside this page, and run group again.`
}

function listen() {
  const help = () => $('#help').showModal(), next = () => move(1), previous = () => move(-1)
  const keys = { j: next, ArrowDown: next, k: previous, ArrowUp: previous, n: () => $('#note').focus(), '?': help }
  $('#words').oninput = $('#which').onchange = filter
  Object.entries({ save, next, previous, ask: help }).forEach(([id, act]) => { $(`#${id}`).onclick = act })
  for (const button of $('#decide').children) {
    button.onclick = keys[button.getAttribute('aria-keyshortcuts')] = () => decide(button.dataset.decision)
  }
  $('#note').oninput = () => keep([Object.assign(current, { note: $('#note').value })])
  addEventListener('keydown', (event) => {
    const typing = event.target.matches('textarea, select, [type=search]'), { key } = event
    if (key === 'Escape' && typing) event.target.blur()
    if (typing || event.ctrlKey || event.metaKey || event.altKey || $('#help').open || !$('#keys').checked) return
    if (!Object.hasOwn(keys, key)) return
    event.preventDefault()
    keys[key]()
  })
  addEventListener('beforeunload', (event) => !keeps && rows.some((row) => row.unsaved) && event.preventDefault())
}

for (const id of rows.length ? ['#cohort', '#review'] : ['#empty']) $(id).hidden = false
if (rows.length) {
  const kept = read()
  rows.forEach((row) => prepare(row, kept[row.mask]))
  if (overlap) Object.assign($('#overlap'), { src: overlap }).parentElement.hidden = false
  build()
  sort('name')
  choose(rows[0])
  summarize()
  listen()
}
