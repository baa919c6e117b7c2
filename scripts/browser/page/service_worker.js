// Keeps the page for use without a network, and adds the headers without which a browser gives a page one thread.

importScripts('files.js') // sets VERSION and FILES

const webgpu = navigator.gpu && 'Suspending' in WebAssembly
const files = self.FILES.filter((file) => webgpu || !file.includes('jspi'))

self.addEventListener('install', (event) => {
  event.waitUntil(caches.open(self.VERSION).then((cache) =>
    cache.addAll(['./', ...files].map((file) => new Request(file, { cache: 'reload' })))))
})

self.addEventListener('activate', (event) => {
  const isOld = (name) => name.startsWith('meshnet-') && name !== self.VERSION
  event.waitUntil(caches.keys()
    .then((names) => Promise.all(names.filter(isOld).map((name) => caches.delete(name))))
    .then(() => self.clients.claim()))
})

self.addEventListener('fetch', (event) => {
  if (event.request.method === 'GET' && event.request.url.startsWith(self.registration.scope)) {
    event.respondWith(answer(event.request))
  }
})

async function answer(request) {
  const cache = await caches.open(self.VERSION)
  const found = (await cache.match(request, { ignoreSearch: true })) ?? (await fetch(request))
  const headers = new Headers(found.headers)
  headers.set('Cross-Origin-Opener-Policy', 'same-origin')
  headers.set('Cross-Origin-Embedder-Policy', 'require-corp')
  headers.set('Cross-Origin-Resource-Policy', 'same-origin')
  return new Response(found.body, { status: found.status, statusText: found.statusText, headers })
}
