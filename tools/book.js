// What a page of the book does beside what its renderer gives it.

// search.json cannot be fetched by a page opened from disk, a script can
if (location.protocol === 'file:') {
  const fetchOnline = window.fetch;
  window.fetch = (url, ...rest) => !String(url).endsWith('search.json') ? fetchOnline(url, ...rest) : new Promise((resolve, reject) => {
    const script = document.createElement('script');
    script.src = String(url).replace(/json$/, 'js');
    script.onload = () => resolve({ok: true, status: 200, json: async () => window.bookIndex});
    script.onerror = reject;
    document.head.append(script);
  });
}

// Search by whole words and their beginnings, in place of Fuse, which both renderers ask for and which finds "timm" in "optimizer".
// What every word is found in counts, chapters before their sections, and these before entries of the API reference.
class WordSearch {
  constructor(docs) {
    this.docs = [];
    docs.forEach(doc => this.add(doc));
  }
  add(item) {
    const words = text => new Set(this.words(text).flatMap(word => [word, ...word.split('_')]));
    const fields = [[words(item.title), 8], [words(item.section), 6], [words(item.text), 1]];
    const place = /^(reference|source)\b|^changelog/.test(item.href) ? 0 : item.href.includes('#') ? 1 : 2;
    this.docs.push({item, fields, place});
  }
  words(text) {  // British and American spelling are one
    const spelt = (text ?? '').toLowerCase().replaceAll('z', 's').replaceAll('our', 'or');
    return spelt.match(/[\p{L}\p{N}_]+/gu) ?? [];
  }
  search(query, {limit = 20} = {}) {
    const asked = this.words(query);
    const starts = (found, word) => [...found].some(other => other.startsWith(word));
    const worth = (doc, word) => Math.max(...doc.fields.map(([found, weight]) => weight*(found.has(word) ? 2 : starts(found, word) ? 1 : 0)));
    const scored = this.docs.map(doc => {
      const each = asked.map(word => worth(doc, word));
      const found = each.length && Math.min(...each);
      return {item: doc.item, score: found ? each.reduce((a, b) => a + b) + doc.place : 0};
    });
    return scored.filter(one => one.score).sort((a, b) => b.score - a.score).slice(0, limit);
  }
}
Object.defineProperty(window, 'Fuse', {get: () => WordSearch, set() {}, configurable: true});

// and a long sidebar shows where the reader is
addEventListener('load', () => {
  const sidebar = document.querySelector('#quarto-sidebar'), here = sidebar?.querySelector('a.active');
  if (here) sidebar.scrollTop = Math.max(0, here.getBoundingClientRect().top - sidebar.getBoundingClientRect().top - sidebar.clientHeight/2);
  const mark = (selector, name, test) => document.querySelectorAll(selector).forEach(e => e.classList.toggle(name, test(e)));
  mark('main figure p:has(> img)', 'wide-figure', e => e.firstElementChild.naturalWidth > 520);
  mark('.cell-output pre', 'aligned', e => {  // what has columns keeps them
    const lines = e.textContent.split('\n').filter(line => line.trim());
    return lines.length > 1 && lines.filter(line => /\S {2,}\S/.test(line)).length >= lines.length/2;
  });
  mark('main td, main p code, main li code', 'short', e => e.textContent.length < 23);
  mark('main td', 'long', e => e.textContent.length > 40);
  document.querySelectorAll('.numberSource code > span').forEach(e => e.style.setProperty('--deep', e.textContent.search(/[^ ]|$/) + 4 + 'ch'));
  document.querySelectorAll('.api-entry td').forEach(e => e.dataset.column = e.closest('table').rows[0].cells[e.cellIndex].textContent);
});
