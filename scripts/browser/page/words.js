// What the page says of a model and writes of masks.

/** Of the card, in sentences: [text, whether it warns]. */
export function describe(card) {
  const grid = `${card.spatial_size.join('x')} voxels of ${card.spacing.join('x')} mm`
  const seen = card.trained_on?.length ? `${card.trained_on.length} scans` : card.cohort ?? 'scans that its card does not name'
  return [
    ...(card.simulated ? [['Trained on simulated lesions.', true]] : []),
    [`Model: ${card.name}, ${card.channels ? `${card.channels} channels, ` : ''}${grid}; trained on: ${seen}.`, false],
  ]
}

/** ``sub-1`` of ``sub-1_T2w.nii.gz``, as inference names its masks. */
export function stem(name) {
  return name.replace(/\.gz$/, '').replace(/\.nii$/, '').replace(/_T2w$/, '')
}

const COLUMNS = ['lesion_volume', 'lesions', 'left_volume', 'right_volume', 'laterality', 'threshold', 'min_volume']

/** ``lesions.tsv``, a row for each scan: volumes in mm3; a name that a spreadsheet would take for a formula is disarmed. */
export function table(scans) {
  const cell = (text) => text.replace(/[\t\r\n]/g, ' ').replace(/^(?=[=+\-@\s])/, './')
  const number = (value) => (value === null ? 'n/a' : String(Number(value.toFixed(6))))
  const rows = scans.map(({ name, row }) =>
    [cell(`${stem(name)}_desc-lesion_mask.nii.gz`), ...COLUMNS.map((column) => number(row[column])), cell(name)])
  return [['mask', ...COLUMNS, 'scan'], ...rows].map((row) => `${row.join('\t')}\n`).join('')
}
