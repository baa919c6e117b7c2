// Makes NIfTI of DICOM files by dcm2niix. A worker converts once: its memory is then full of files.

import { answer } from './ask.js'
import dcm2niix from './dcm2niix.jpeg.js'

const OPTIONS = '-b y -ba y -z n -f %k_%s_%b -o /output /input'.split(' ') // study, series, first file; nobody's name

answer({ convert })

async function convert({ files }) {
  const said = [], print = (line) => said.push(line)
  const { FS, callMain } = await dcm2niix({ print, printErr: print })
  FS.mkdir('/input')
  FS.mkdir('/output')
  for (const [i, file] of files.entries()) {
    FS.writeFile(`/input/${i}.dcm`, new Uint8Array(await file.arrayBuffer()), { canOwn: true })
  }
  callMain(OPTIONS) // what it returns tells no single broken file from many, what it says does
  const there = FS.readdir('/output'), text = (name) => FS.readFile(`/output/${name}`, { encoding: 'utf8' })
  const made = there.filter((name) => name.endsWith('.nii')).map((file) => {
    const name = file.slice(0, -4), about = there.includes(`${name}.json`) ? JSON.parse(text(`${name}.json`)) : {}
    return { name, about, bytes: FS.readFile(`/output/${file}`) }
  })
  return { made, said, moved: made.map(({ bytes }) => bytes.buffer) }
}
