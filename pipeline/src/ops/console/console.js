// The console without this script shows the same; with it numbers live, tables sort, times are the viewer's own.
(function () {
  "use strict";
  var live = document.getElementById("live");
  var say = document.getElementById("say");
  var heard = Date.now();
  var said = 0;
  var paused = false;
  var sorted = {};

  // Times in the viewer's zone; UTC on hover.
  var pad = function (n) { return (n < 10 ? "0" : "") + n; };
  function localTimes(root) {
    root.querySelectorAll("time[datetime]").forEach(function (t) {
      if (t.title) return;
      var at = new Date(t.dateTime);
      if (isNaN(at)) return;
      var day = at.getFullYear() + "-" + pad(at.getMonth() + 1) + "-" + pad(at.getDate());
      var now = new Date();
      var today = now.getFullYear() + "-" + pad(now.getMonth() + 1) + "-" + pad(now.getDate());
      t.title = t.dateTime.replace("T", " ").replace("Z", " UTC");
      t.textContent = (day === today ? "" : day + " ") + pad(at.getHours()) + ":" + pad(at.getMinutes()) + ":" + pad(at.getSeconds());
    });
  }

  // Commands can be copied.
  function copyButtons(root) {
    if (!navigator.clipboard) return;
    root.querySelectorAll("code[data-copy]").forEach(function (code) {
      if (code.querySelector("button")) return;
      var text = code.textContent;
      var button = document.createElement("button");
      button.type = "button";
      button.textContent = "copy";
      button.setAttribute("aria-label", "Copy the command");
      button.addEventListener("click", function () {
        navigator.clipboard.writeText(text).then(function () { button.textContent = "copied"; });
      });
      code.appendChild(button);
    });
  }

  // Tables sort by the head that is pressed.
  function value(cell) {
    var text = cell ? cell.textContent.trim() : "";
    var time = cell && cell.querySelector("time");
    if (time) return Date.parse(time.dateTime);
    var units = { k: 1e3, M: 1e6, KiB: 1024, MiB: 1048576, GiB: 1073741824, TiB: 1099511627776, ms: 0.001, s: 1, m: 60, h: 3600, d: 86400 };
    var total = 0, any = false;
    var number = /^([\d\u202f]+(?:\.\d+)?)\s?(k|M|KiB|MiB|GiB|TiB|ms|s|m|h|d|B|%)?(\/s)?\b\s*/;
    var rest = text, found;
    while ((found = number.exec(rest))) {
      any = true;
      total += parseFloat(found[1].replace(/\u202f/g, "")) * (units[found[2]] || 1);
      rest = rest.slice(found[0].length);
    }
    return any && !rest.match(/[a-z]{3}/i) ? total : text.toLowerCase();
  }
  function order(table, column, down) {
    var body = table.tBodies[0];
    var rows = Array.prototype.slice.call(body.rows);
    rows.sort(function (a, b) {
      var x = value(a.cells[column]), y = value(b.cells[column]);
      var n = typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === "number" ? -1 : 1;
      return down ? -n : n;
    });
    rows.forEach(function (row) { body.appendChild(row); });
    Array.prototype.forEach.call(table.tHead.rows[0].cells, function (head, i) {
      if (i === column) head.setAttribute("aria-sort", down ? "descending" : "ascending"); else head.removeAttribute("aria-sort");
    });
  }
  function sortable(root) {
    root.querySelectorAll("table[data-sort]").forEach(function (table) {
      var name = table.caption ? table.caption.textContent : "";
      Array.prototype.forEach.call(table.tHead.rows[0].cells, function (head, column) {
        if (head.querySelector("button")) return;
        var button = document.createElement("button");
        button.type = "button";
        while (head.firstChild) button.appendChild(head.firstChild);
        head.appendChild(button);
        button.addEventListener("click", function () {
          var down = head.getAttribute("aria-sort") === "ascending";
          sorted[name] = [column, down];
          order(table, column, down);
        });
      });
      if (sorted[name]) order(table, sorted[name][0], sorted[name][1]);
    });
  }

  function dress(root) { localTimes(root); copyButtons(root); sortable(root); }

  // What is new takes the place of what is old; what is open stays open, and what has the focus keeps it.
  function swap(html) {
    var open = {}, scroll = {};
    live.querySelectorAll("details[id]").forEach(function (d) { open[d.id] = d.open; });
    live.querySelectorAll(".scroll").forEach(function (s, i) { scroll[i] = s.scrollLeft; });
    var focus = document.activeElement;
    var path = null;
    if (focus && focus !== live && live.contains(focus)) {
      // Somebody reads or copies here: what is selected is not taken away.
      var all = live.querySelectorAll("a,button,summary,input,select,.scroll");
      path = Array.prototype.indexOf.call(all, focus);
      if (focus.matches("input,select")) return false;
    }
    var selection = document.getSelection();
    if (selection && !selection.isCollapsed && live.contains(selection.anchorNode)) return false;
    var fresh = document.createElement("template");
    fresh.innerHTML = html;
    live.replaceChildren(fresh.content);
    live.querySelectorAll("details[id]").forEach(function (d) { if (d.id in open) d.open = open[d.id]; });
    live.querySelectorAll(".scroll").forEach(function (s, i) { s.scrollLeft = scroll[i] || 0; });
    dress(live);
    if (path !== null && path >= 0) {
      var again = live.querySelectorAll("a,button,summary,input,select,.scroll")[path];
      if (again) again.focus({ preventScroll: true });
    }
    return true;
  }

  function fresh() {
    heard = Date.now();
    document.body.classList.remove("is-stale");
    document.querySelectorAll("[data-stale]").forEach(function (s) { s.hidden = true; });
    var age = document.querySelector("[data-age] time");
    if (age) { age.dateTime = new Date().toISOString().slice(0, 19) + "Z"; age.title = ""; localTimes(age.parentNode); }
  }

  // Old numbers are never green.
  function look() {
    if (Date.now() - heard < 30000 || document.body.classList.contains("is-stale")) return;
    document.body.classList.add("is-stale");
    document.querySelectorAll("[data-stale]").forEach(function (s) { s.hidden = false; });
    document.querySelectorAll("[data-state]").forEach(function (s) {
      s.className = "state s-unknown";
      s.querySelector("use").setAttribute("href", "#i-unknown");
      s.querySelector("span").textContent = "unknown";
    });
  }

  function speak() {
    var line = live.querySelector("[data-headline]");
    // At most one sentence every five seconds, and only a new one.
    if (!line || Date.now() - said < 5000 || say.textContent === line.textContent) return;
    said = Date.now();
    say.textContent = line.textContent;
  }

  dress(document);
  if (live && live.dataset.live && window.EventSource) {
    var events;
    var listen = function () {
      events = new EventSource(live.dataset.live);
      events.addEventListener("live", function (e) { if (!paused && swap(e.data)) speak(); fresh(); });
      events.addEventListener("same", fresh);
    };
    // A page that nobody sees asks for nothing.
    document.addEventListener("visibilitychange", function () {
      if (document.hidden) { if (events) events.close(); events = null; } else if (!events) listen();
    });
    if (!document.hidden) listen();
    setInterval(look, 1000);
    document.querySelectorAll("[data-pause]").forEach(function (button) {
      button.hidden = false;
      button.addEventListener("click", function () {
        paused = !paused;
        button.textContent = paused ? "Go on" : "Pause";
        button.setAttribute("aria-pressed", String(paused));
      });
    });
  }
})();
