// Questions to a worker: it answers one after the other, and tells of its progress meanwhile.

import { ScanError } from './nifti.js'

/** A worker of ``script``; ``onNews`` hears what it tells unasked. */
export class Helper {
  constructor(script, onNews) {
    this.waiting = []
    this.worker = new Worker(script, { type: 'module' })
    this.worker.onmessage = ({ data: { news, answer, error } }) => {
      if (news) return onNews(news)
      const { resolve, reject } = this.waiting.shift()
      if (error) reject(new Error(error))
      else resolve(answer)
    }
    this.worker.onerror = ({ message }) => this.end(`it could not be worked on (${message})`)
  }

  /** The answer of the worker's function ``kind`` to ``content``; an Error says in words what went wrong. */
  ask(kind, content) {
    const answer = Promise.withResolvers()
    this.waiting.push(answer)
    this.worker.postMessage({ kind, ...content })
    return answer.promise
  }

  end(why = 'cancelled') {
    this.worker.terminate()
    for (const { reject } of this.waiting.splice(0)) reject(new Error(why))
  }
}

/** In a worker: answer each question by the function of its kind; what an answer has in ``moved`` is not copied. */
export function answer(functions) {
  const queue = inTurn()
  self.onmessage = ({ data }) => queue(async () => {
    try {
      const { moved = [], ...content } = (await functions[data.kind](data)) ?? {}
      self.postMessage({ answer: content }, moved)
    } catch (error) {
      const memory = error instanceof RangeError || /memory|alloc|OOM/i.test(error.message ?? error)
      const known = error instanceof ScanError ? error.message : memory && 'the browser has not enough memory for it'
      self.postMessage({ error: known || `it could not be worked on (${error.message ?? error})` })
    }
  })
}

/** A function that does what it is given after what it was given before, whatever became of that. */
export function inTurn() {
  let before = Promise.resolve()
  return (act) => (before = before.catch(() => {}).then(() => act()))
}

/** A function that does ``act`` in its turn in a ``queue``, once for all calls before that. */
export function latest(queue, act) {
  let waiting
  return () => (waiting ??= queue(() => {
    waiting = undefined
    return act()
  }))
}
