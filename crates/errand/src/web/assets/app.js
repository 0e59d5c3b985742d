// Enhancements of the pages. Each part acts on the elements that have its attribute. Without scripts, everything except
// live updates still works.
(function () {
  'use strict'

  // --- links into the transcript ---
  // A link to an entry that is on the page scrolls there without reloading, so that typed text is kept.
  document.addEventListener('click', function (event) {
    var link = event.target.closest('a[href*="?around="]')
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return
    if (link.pathname !== location.pathname || !document.getElementById(link.hash.slice(1))) return
    event.preventDefault()
    location.hash = link.hash
  })

  // --- copying ---
  document.addEventListener('click', function (event) {
    var button = event.target.closest('[data-copy]')
    if (!button) return
    var text = button.getAttribute('data-copy')
    var from = button.getAttribute('data-copy-from')
    if (from) text = document.getElementById(from).textContent
    var done = function () {
      button.setAttribute('data-copied', '')
      say('Copied.')
      window.setTimeout(function () { button.removeAttribute('data-copied') }, 1500)
    }
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, function () { window.prompt('Copy this:', text) })
    else window.prompt('Copy this:', text)
  })

  // Announces a text to screen readers.
  function say(text) {
    var place = document.getElementById('says')
    if (place) place.textContent = text
  }

  // --- times ---
  function ago(ms) {
    var s = Math.round(ms / 1000)
    var future = s < 0
    s = Math.abs(s)
    var text = s < 5 ? 'now' : s < 60 ? s + ' s' : s < 3600 ? Math.floor(s / 60) + ' min' : s < 86400 ? Math.floor(s / 3600) + ' h' : s < 172800 ? '1 day' : Math.floor(s / 86400) + ' days'
    return text === 'now' ? text : future ? 'in ' + text : text + ' ago'
  }
  // Times are relative to the server's clock: the page contains the server's time at which it was rendered.
  var skew = Number(document.documentElement.getAttribute('data-now') || Date.now()) - Date.now()
  function times(root) {
    root.querySelectorAll('time[data-ms]').forEach(function (time) {
      time.textContent = ago(Date.now() + skew - Number(time.getAttribute('data-ms')))
    })
  }
  window.setInterval(function () { times(document) }, 15000)

  // --- forms ---
  document.addEventListener('submit', function (event) {
    var form = event.target
    var question = form.getAttribute('data-confirm')
    if (question && !window.confirm(question)) event.preventDefault()
  })

  // --- files: dropped, and sent with a progress bar ---
  document.querySelectorAll('form[data-upload]').forEach(function (form) {
    var input = form.querySelector('input[type=file]')
    var drop = form.querySelector('.drop')
    var list = form.querySelector('[data-files]')
    var none = form.querySelector('[data-none]')
    var kept = new DataTransfer()
    // Dropped and chosen files are added to the existing ones; a file with the same name replaces the earlier one.
    function add(files) {
      var all = new DataTransfer()
      var names = Array.prototype.map.call(files, function (file) { return file.name })
      Array.prototype.forEach.call(kept.files, function (file) { if (names.indexOf(file.name) < 0) all.items.add(file) })
      Array.prototype.forEach.call(files, function (file) { all.items.add(file) })
      keep(all)
    }
    function keep(all) {
      kept = all
      input.files = all.files
      none.hidden = !all.files.length
      list.textContent = Array.prototype.map.call(input.files, function (file) { return file.name + ' (' + size(file.size) + ')' }).join(', ')
    }
    input.addEventListener('change', function () { add(input.files) })
    none.addEventListener('click', function () { keep(new DataTransfer()) })
    ;['dragenter', 'dragover'].forEach(function (name) {
      drop.addEventListener(name, function (event) { event.preventDefault(); drop.classList.add('over') })
    })
    ;['dragleave', 'drop'].forEach(function (name) {
      drop.addEventListener(name, function (event) { event.preventDefault(); drop.classList.remove('over') })
    })
    drop.addEventListener('drop', function (event) {
      add(event.dataTransfer.files)
    })
    form.addEventListener('submit', function (event) {
      if (!input.files.length) return
      event.preventDefault()
      var bar = form.querySelector('progress')
      var wrong = form.querySelector('[data-wrong]')
      var button = form.querySelector('button.main')
      bar.hidden = false
      wrong.textContent = ''
      button.disabled = true
      var request = new XMLHttpRequest()
      request.open('POST', form.action)
      request.setRequestHeader('accept', 'application/json')
      request.upload.addEventListener('progress', function (at) { if (at.lengthComputable) { bar.max = at.total; bar.value = at.loaded } })
      request.addEventListener('load', function () {
        var answer = {}
        try { answer = JSON.parse(request.responseText) } catch (error) { answer = {} }
        if (answer.go) { window.location.assign(answer.go); return }
        wrong.textContent = answer.message || 'The files did not arrive. Try again.'
        bar.hidden = true
        button.disabled = false
      })
      request.addEventListener('error', function () {
        wrong.textContent = 'The connection was lost. Try again.'
        bar.hidden = true
        button.disabled = false
      })
      request.send(new FormData(form))
    })
  })
  function size(bytes) {
    return bytes < 1000 ? bytes + ' B' : bytes < 1e6 ? (bytes / 1e3).toFixed(1) + ' kB' : (bytes / 1e6).toFixed(1) + ' MB'
  }

  if (!window.htmx) return

  // --- a live run: continues after the last shown entry, also after a lost connection ---
  window.htmx.createEventSource = function (url) {
    var last = 0
    document.querySelectorAll('#transcript > li[data-at]').forEach(function (entry) { last = Math.max(last, Number(entry.getAttribute('data-at'))) })
    var asked = { id: '' }
    document.dispatchEvent(new CustomEvent('errand:asked', { detail: asked }))
    var at = new URL(url, window.location.href)
    if (last) at.searchParams.set('after', String(last))
    at.searchParams.set('request', asked.id)
    var source = new EventSource(at)
    document.dispatchEvent(new CustomEvent('errand:stream', { detail: source }))
    return source
  }
  // An element under the pointer or with keyboard focus is updated only after the person has left it.
  var later = new Map()
  function inHands(place) { return place.matches(':hover') || place.contains(document.activeElement) }
  function flush() {
    later.forEach(function (data, place) {
      if (inHands(place)) return
      later.delete(place)
      var open = unfolded(place)
      place.innerHTML = data
      window.htmx.process(place)
      unfold(place, open)
      times(place)
    })
  }
  ;['pointerout', 'focusout'].forEach(function (name) {
    document.addEventListener(name, function () { if (later.size) window.setTimeout(flush, 0) })
  })
  // Unfolded elements stay unfolded.
  function unfolded(place) {
    return Array.prototype.map.call(place.querySelectorAll('details[open] > summary'), function (summary) { return summary.textContent })
  }
  function unfold(place, open) {
    place.querySelectorAll('details > summary').forEach(function (summary) {
      if (open.indexOf(summary.textContent) >= 0) summary.parentNode.open = true
    })
  }
  var wereUnfolded = []
  document.body.addEventListener('htmx:sseBeforeMessage', function (event) {
    var data = event.detail.data || ''
    var entry = /^<li[^>]* id="(e-\d+)"/.exec(data)
    if (entry && document.getElementById(entry[1])) { event.preventDefault(); return }
    var place = event.target
    if (place.id !== 'side' && place.id !== 'actions') return
    later.delete(place)
    if (inHands(place)) {
      later.set(place, data)
      event.preventDefault()
    } else if (place.id === 'side') wereUnfolded = unfolded(place)
  })
  document.body.addEventListener('htmx:sseMessage', function (event) {
    if (event.target.id === 'side') unfold(event.target, wereUnfolded)
    times(document)
  })
  function live(state) {
    var sign = document.getElementById('live')
    if (!sign) return
    sign.hidden = state === ''
    sign.classList.toggle('lost', state === 'lost')
    sign.querySelector('span').textContent = state === 'lost' ? 'Connection lost, trying again' : 'Live'
  }
  document.body.addEventListener('htmx:sseOpen', function () { live('live') })
  document.body.addEventListener('htmx:sseError', function () { live('lost') })
  document.body.addEventListener('htmx:sseClose', function () { live('') })

  // --- open requests: counted in the title, and shown as browser notifications if permitted ---
  var known = null
  function counted() {
    var place = document.getElementById('open-requests')
    if (!place) return
    var open = Number(place.getAttribute('data-open'))
    document.querySelectorAll('[data-open-count]').forEach(function (count) { count.textContent = open ? String(open) : '' })
    document.title = document.title.replace(/^\(\d+\) /, '')
    if (open) document.title = '(' + open + ') ' + document.title
    var newest = place.getAttribute('data-newest')
    if (known !== null && newest && newest !== known && open && 'Notification' in window && Notification.permission === 'granted') {
      new Notification('errand: a request waits for you', { body: place.getAttribute('data-title') || '' })
    }
    if (newest) known = newest
    else if (known === null) known = ''
  }
  counted()
  document.addEventListener('errand:counted', function () { counted(); times(document) })
  document.body.addEventListener('htmx:afterSwap', function () { times(document) })
  document.addEventListener('click', function (event) {
    var button = event.target.closest('[data-notify]')
    if (!button || !('Notification' in window)) return
    Notification.requestPermission().then(function (allowed) { button.hidden = allowed === 'granted' })
  })
  document.querySelectorAll('[data-notify]').forEach(function (button) {
    button.hidden = !('Notification' in window) || Notification.permission !== 'default'
  })
})()
