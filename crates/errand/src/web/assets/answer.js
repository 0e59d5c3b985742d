// Answering requests. Elements that a person is using never move, are never replaced and never lose typed text. A button
// that has just appeared or moved does not act. An answered card stays in its place. Without this script, a page changes
// only when it is reloaded.
(function () {
  'use strict'

  var SETTLE_MS = 500
  var LOOK_EVERY_MS = 100
  var ASK_EVERY_MS = 5000

  function say(text) {
    var place = document.getElementById('says')
    if (place) place.textContent = text
  }

  // --- buttons settle before they act ---
  var places = new WeakMap()
  // The time since which each button has been in its present position.
  function settled(button, now) {
    var at = button.getBoundingClientRect()
    var was = places.get(button)
    if (!was || Math.abs(was.x - at.x) > 1 || Math.abs(was.y - at.y) > 1) {
      was = { x: at.x, y: at.y, since: now }
      places.set(button, was)
    }
    var is = now - was.since >= SETTLE_MS
    if (is !== button.hasAttribute('data-settled')) button.toggleAttribute('data-settled', is)
    return is
  }
  function look() {
    var now = performance.now()
    document.querySelectorAll('[data-decides]').forEach(function (button) { settled(button, now) })
  }
  look()
  window.setInterval(look, LOOK_EVERY_MS)
  // A person who returns to the page has not seen what moved in the meantime.
  document.addEventListener('visibilitychange', function () { places = new WeakMap(); look() })
  document.addEventListener('click', function (event) {
    var button = event.target.closest && event.target.closest('[data-decides]')
    if (!button || settled(button, performance.now())) return
    event.preventDefault()
    event.stopImmediatePropagation()
    say('This button has just appeared or moved. Press it again.')
  }, true)

  // --- the element that a person is using keeps its position in the window ---
  var held = null
  var heldTop = 0
  function hands() {
    var active = document.activeElement
    if (active && active.matches('textarea, input, select')) return active
    return document.querySelector('.request:hover, main form:hover') || (active && active.closest('.request, main form'))
  }
  function note() {
    held = hands()
    if (held) heldTop = held.getBoundingClientRect().top
  }
  function keep(what, top) {
    if (!what.isConnected) return
    var moved = what.getBoundingClientRect().top - top
    if (Math.abs(moved) >= 1) window.scrollBy({ top: moved, behavior: 'instant' })
  }
  var main = document.getElementById('main')
  if (main && document.querySelector('#request, #open-requests')) {
    ['scroll', 'focusin', 'focusout', 'pointermove', 'pointerdown', 'input', 'toggle'].forEach(function (name) {
      document.addEventListener(name, note, { passive: true, capture: true })
    })
    window.addEventListener('resize', note)
    new MutationObserver(function () {
      var what = held
      var top = heldTop
      if (!what) { note(); return }
      keep(what, top)
      // The browser's scroll anchoring may have moved it, too.
      window.requestAnimationFrame(function () { keep(what, top); note() })
    }).observe(main, { childList: true, characterData: true, subtree: true })
  }

  // --- answered cards ---
  function cardOf(id) { return document.querySelector('[data-request="' + id + '"]') }
  function close(card, outcome) {
    if (card.hasAttribute('data-closed')) return
    card.setAttribute('data-closed', '')
    var had = card.contains(document.activeElement) && !document.activeElement.matches('textarea')
    card.querySelectorAll('form button, form input').forEach(function (field) { if (field.type !== 'hidden') field.disabled = true })
    card.querySelectorAll('form textarea').forEach(function (field) { field.readOnly = true })
    var place = card.querySelector('[data-outcome]')
    if (place) place.replaceChildren(outcome)
    if (had) outcome.focus({ preventScroll: true })
    say(card.querySelector('h2').textContent + ': ' + outcome.textContent)
  }
  function parsed(html) { return new DOMParser().parseFromString(html, 'text/html') }
  // Closes the cards whose outcome a fragment contains, and returns their number.
  function outcomes(piece) {
    var closed = 0
    piece.querySelectorAll('[data-outcome-of]').forEach(function (of) {
      var id = of.getAttribute('data-outcome-of')
      var card = cardOf(id)
      if (card && of.firstElementChild) { close(card, document.adoptNode(of.firstElementChild)); closed += 1 }
      if (waiting && waiting.getAttribute('data-request') === id) { waiting = null; bar('') }
    })
    return closed
  }

  // --- answers are sent in place ---
  document.addEventListener('submit', function (event) {
    var form = event.target
    if (!form.hasAttribute('data-answer')) return
    event.preventDefault()
    var button = event.submitter
    if (!button || !button.hasAttribute('data-decides') || form.hasAttribute('data-busy')) return
    send(form, button)
  })
  function send(form, button) {
    var fields = new URLSearchParams(new FormData(form))
    fields.append(button.name, button.value)
    var wrong = form.querySelector('[data-wrong]')
    wrong.textContent = ''
    form.setAttribute('data-busy', '')
    fetch(form.getAttribute('action'), { method: 'POST', headers: { 'x-in-place': '1', 'hx-request': 'true' }, body: fields }).then(function (response) {
      if (response.status === 401) throw new Error('You are logged out. Log in again in another tab, then press the button again.')
      return response.text().then(function (html) {
        var piece = parsed(html)
        var told = piece.querySelector('[data-wrong]')
        if (outcomes(piece) && told) wrong.textContent = told.textContent
        else if (!response.ok) throw new Error(told ? told.textContent : 'Something went wrong. Try again.')
        ask()
      })
    }).catch(function (error) {
      wrong.textContent = error instanceof TypeError ? 'The server could not be reached. Try again.' : error.message
    }).then(function () { form.removeAttribute('data-busy') })
  }

  // --- new requests are announced, and shown when the person asks for them ---
  var news = document.getElementById('news')
  // The card of a run's new request, until the person asks for it.
  var waiting = null
  function bar(text) {
    if (!news) return
    var button = news.querySelector('button')
    if (text && news.hidden) say(text)
    if (button.textContent !== text) button.textContent = text
    news.hidden = !text
  }
  function put(place, cards) {
    cards.forEach(function (card) { if (!cardOf(card.getAttribute('data-request'))) place.append(document.adoptNode(card)) })
    var first = cards[0] && cards[0].isConnected ? cards[0] : null
    if (!first) return
    first.scrollIntoView({ block: 'start' })
    first.querySelector('h2').focus({ preventScroll: true })
    look()
  }
  document.addEventListener('click', function (event) {
    if (!event.target.closest('[data-news]')) return
    if (waiting) {
      var card = waiting
      waiting = null
      bar('')
      put(document.getElementById('request'), [card])
    } else if (list) {
      get('&cards=1').then(function (piece) {
        bar('')
        put(list, Array.prototype.slice.call(piece.querySelectorAll('article')))
        tell(piece)
      }, function () { say('The server could not be reached. Try again.') })
    }
  })

  // --- the inbox polls for changes ---
  var list = document.getElementById('open-requests')
  function get(more) {
    var shown = []
    list.querySelectorAll('[data-request]:not([data-closed])').forEach(function (card) { shown.push(card.getAttribute('data-request')) })
    var address = '/inbox/open?seen=' + list.getAttribute('data-seen') + '&shown=' + shown.slice(-200).join(',') + more
    return fetch(address, { headers: { 'hx-request': 'true' } }).then(function (response) {
      if (!response.ok) throw new Error(String(response.status))
      return response.text()
    }).then(parsed)
  }
  function tell(piece) {
    outcomes(piece)
    var now = piece.querySelector('[data-open]')
    if (!now) return
    ;['data-open', 'data-newest', 'data-title'].forEach(function (name) {
      if (now.hasAttribute(name)) list.setAttribute(name, now.getAttribute(name))
    })
    document.dispatchEvent(new CustomEvent('errand:counted'))
    return Number(now.getAttribute('data-fresh'))
  }
  function ask() {
    if (!list) return
    get('').then(function (piece) {
      var fresh = tell(piece)
      bar(fresh ? fresh + (fresh === 1 ? ' new request' : ' new requests') : '')
    }, function () { /* The next round asks again. */ })
  }
  if (list) window.setInterval(ask, ASK_EVERY_MS)

  // --- a run's page is updated by its stream ---
  document.addEventListener('errand:stream', function (event) {
    event.detail.addEventListener('outcome', function (message) { outcomes(parsed(message.data)) })
    event.detail.addEventListener('request', function (message) {
      var card = parsed(message.data).querySelector('[data-request]')
      if (!card || cardOf(card.getAttribute('data-request'))) return
      waiting = card
      bar('New request: ' + card.querySelector('h2').textContent.trim().slice(0, 60))
    })
  })
  // The request that the page shows, sent when the stream reconnects.
  document.addEventListener('errand:asked', function (event) {
    var open = document.querySelectorAll('#request [data-request]:not([data-closed])')
    var last = waiting || open[open.length - 1]
    event.detail.id = last ? last.getAttribute('data-request') : ''
  })
})()
