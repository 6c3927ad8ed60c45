(function () {
  "use strict";
  var root = document.documentElement;
  document.getElementById("theme").addEventListener("click", function () {
    var dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  var PAGE = 100;

  function words(text) {
    return text.toLowerCase().split(/\s+/).filter(Boolean);
  }

  document.querySelectorAll(".searchable").forEach(function (block) {
    var body = block.querySelector("tbody");
    if (!body) { return; }
    var rows = Array.prototype.slice.call(body.rows).map(function (row) {
      return { row: row, text: row.textContent.toLowerCase() };
    });
    var search = block.querySelector("input[type=search]");
    var filters = block.querySelector(".filters");
    var output = block.querySelector("output");
    var more = block.querySelector(".more");
    var wanted = "";
    var shown = PAGE;

    function matches(one) {
      if (wanted && one.row.cells[Number(filters.dataset.column)].textContent.trim() !== wanted) { return false; }
      return words(search.value).every(function (word) { return one.text.indexOf(word) >= 0; });
    }

    function show() {
      var found = 0;
      rows.forEach(function (one) {
        var hit = matches(one);
        found += hit ? 1 : 0;
        one.row.hidden = !hit || found > shown;
      });
      output.textContent = found + " of " + rows.length + (found > shown ? ", the first " + shown + " shown" : "");
      more.hidden = found <= shown;
    }

    search.addEventListener("input", function () { shown = PAGE; show(); });
    more.addEventListener("click", function () { shown += PAGE; show(); });
    if (filters) {
      filters.addEventListener("click", function (event) {
        var button = event.target.closest("button");
        if (!button) { return; }
        wanted = button.dataset.value;
        filters.querySelectorAll("button").forEach(function (other) {
          other.setAttribute("aria-pressed", String(other === button));
        });
        shown = PAGE;
        show();
      });
    }

    var heads = Array.prototype.slice.call(block.querySelectorAll("th"));
    var collator = new Intl.Collator(undefined, { sensitivity: "base", numeric: true });

    function key(row, column) {
      var cell = row.cells[column];
      return cell.dataset.sort === undefined ? cell.textContent.trim() : cell.dataset.sort;
    }

    function isNumeric(column) {
      return rows.some(function (one) { return one.row.cells[column].dataset.sort !== undefined; }) &&
        rows.every(function (one) {
          var value = one.row.cells[column].dataset.sort;
          return value === undefined || !isNaN(value);
        });
    }

    function sortBy(column, up) {
      heads.forEach(function (other) { other.setAttribute("aria-sort", "none"); });
      heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
      var numeric = isNumeric(column);
      rows.sort(function (a, b) {
        var x = key(a.row, column), y = key(b.row, column);
        var order = numeric ? Number(x) - Number(y) : collator.compare(x, y);
        return order * (up ? 1 : -1);
      });
      rows.forEach(function (one) { body.appendChild(one.row); });
      show();
    }

    block.querySelectorAll(".sort").forEach(function (button) {
      button.addEventListener("click", function () {
        var head = button.closest("th");
        sortBy(head.cellIndex, head.getAttribute("aria-sort") !== "ascending");
      });
    });
    block.querySelector(".sorter select").addEventListener("change", function (event) {
      var chosen = event.target.value.split(" ");
      if (chosen.length === 2) { sortBy(Number(chosen[0]), chosen[1] === "up"); }
    });
    window.addEventListener("beforeprint", function () {
      rows.forEach(function (one) { one.row.hidden = !matches(one); });
    });
    window.addEventListener("afterprint", show);
    show();
  });
}());
