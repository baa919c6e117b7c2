// What the page writes of masks.

/** ``sub-1_desc-lesion_mask`` for ``sub-1_T2w.nii.gz``, as inference names its masks. */
export const maskOf = ({ name }) => `${name.replace(/(_T2w)?(\.nii)?(\.gz)?$/, '')}_desc-lesion_mask`

/** The folder that BIDS has for a scan of that name, ``sub-1/ses-2/anat/``; none for other names. */
const folderOf = ({ name }) => {
  const [, subject, session] = name.match(/^(sub-[^_.]+)_(?:(ses-[^_.]+)_)?/) ?? []
  return subject ? `${subject}/${session ? `${session}/` : ''}anat/` : ''
}

/** Of a mask: by what it was made, of which scan, and whether a hand corrected it. */
export function sidecar(scan) {
  const { lesions, threshold, min_volume, changed_by_hand, ...volumes } = scan.row
  const raw = `bids:raw:${folderOf(scan)}${scan.name}`
  const hand = { Name: 'Correction by hand', Description: 'Corrected by hand on the page that segmented the scan' }
  return JSON.stringify({
    Description: `1 where the network finds a chronic stroke lesion${scan.corrected ? ', corrected by hand' : ''}`,
    Type: 'Lesion', Manual: Boolean(scan.corrected), Sources: [raw], SpatialReference: raw,
    GeneratedBy: [{ ...scan.maker, Settings: { threshold, min_volume } }, ...(scan.corrected ? [hand] : [])],
    MaskSHA256: scan.sha256, // of the mask as the network drew it, as inference writes it
    Lesions: { lesions, ...volumes, midline: scan.middle },
  }, null, 4)
}

const COLUMNS = [
  'lesion_volume', 'lesions', 'left_volume', 'right_volume', 'laterality', 'changed_by_hand', 'threshold', 'min_volume',
]

/** ``lesions.tsv``, a row a scan: volumes in mm3; a name that a spreadsheet would take for a formula is disarmed. */
export function table(scans, pathOf = maskOf) {
  const cell = (text) => text.replace(/[\t\r\n]/g, ' ').replace(/^(?=[=+\-@\s])/, './')
  const value = (cell) => (typeof cell === 'number' ? Number(cell.toFixed(6)) : cell ?? 'n/a')
  const rows = scans.map((scan) =>
    [cell(`${pathOf(scan)}.nii.gz`), ...COLUMNS.map((key) => value(scan.row[key])), cell(scan.name)])
  return [['mask', ...COLUMNS, 'scan'], ...rows].map((row) => `${row.join('\t')}\n`).join('')
}

/** All masks as a BIDS derivative, for ``downloadZip``. Those of scans of one name come into folders 2/, 3/, ... */
export function derivative(scans) {
  const paths = new Map()
  for (const [path, same] of Map.groupBy(scans, (scan) => `${folderOf(scan)}${maskOf(scan)}`)) {
    same.forEach((scan, i) => paths.set(scan, i ? `${i + 1}/${path}` : path))
  }
  const GeneratedBy = [scans[0].maker], DatasetType = 'derivative'
  const about = { Name: 'Segmentations by MeshNet', BIDSVersion: '1.9.0', DatasetType, GeneratedBy }
  return [
    { name: 'dataset_description.json', input: JSON.stringify(about, null, 4) },
    { name: 'lesions.tsv', input: table(scans, (scan) => paths.get(scan)) },
    ...scans.flatMap((scan) => [
      { name: `${paths.get(scan)}.nii.gz`, input: scan.mask },
      { name: `${paths.get(scan)}.json`, input: sidecar(scan) },
    ]),
  ]
}
