// Sort tables by their columns: a button in each heading, and on narrow screens, where headings are hidden, one list.
// Nothing else on the page needs a script.
"use strict";
(function () {
  const said = document.getElementById("sorted");
  const words = { ascending: "ascending", descending: "descending", none: "in the report's order" };
  const next = { none: "ascending", ascending: "descending", descending: "none" };
  const signs = { none: "↕", ascending: "↑", descending: "↓" };

  function key(row, column) {
    const cell = row.cells[column];
    const text = cell ? cell.textContent.trim() : "";
    const found = text.replace(/−/g, "-").match(/^[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?/i);
    const units = { s: 1, min: 60, h: 3600 };
    const unit = found && text.match(/^[\d.]+ (s|min|h)$/);
    return { number: found ? Number(found[0]) * (unit ? units[unit[1]] : 1) : null, text: text.toLowerCase() };
  }

  function compare(a, b) {
    if (a.number !== null && b.number !== null) return a.number - b.number;
    if (a.number !== null || b.number !== null) return a.number !== null ? -1 : 1;
    return a.text < b.text ? -1 : a.text > b.text ? 1 : 0;
  }

  // Lines of the paper stay below the line that they belong to; reference lines stay at the end.
  function groups(rows) {
    const made = [];
    for (const row of rows) {
      if (row.classList.contains("paper") && made.length) made[made.length - 1].push(row);
      else made.push([row]);
    }
    return made;
  }

  function enable(table) {
    const head = table.tHead && table.tHead.rows[0];
    const body = table.tBodies[0];
    if (!head || !body || body.rows.length < 3) return;
    const original = groups(Array.from(body.rows));
    const columns = Array.from(head.cells);
    const names = columns.map((cell) => cell.textContent.trim());
    const buttons = [];
    let choice = null;

    function sort(column, direction) {
      const steps = original.filter((group) => !group[0].classList.contains("control"));
      const fixed = original.filter((group) => group[0].classList.contains("control"));
      if (direction !== "none") {
        const sign = direction === "ascending" ? 1 : -1;
        const keyed = steps.map((group, place) => ({ group, place, key: key(group[0], column) }));
        keyed.sort((a, b) => {
          const empty = (a.key.number === null) !== (b.key.number === null);
          return (empty ? 1 : sign) * compare(a.key, b.key) || a.place - b.place;
        });
        steps.splice(0, steps.length, ...keyed.map((one) => one.group));
      }
      body.append(...steps.flat(), ...fixed.flat());
      columns.forEach((cell, place) => {
        const state = place === column ? direction : "none";
        if (state === "none") cell.removeAttribute("aria-sort");
        else cell.setAttribute("aria-sort", state);
        buttons[place].firstChild.textContent = signs[state];
        buttons[place].dataset.state = state;
      });
      if (choice) choice.value = direction === "none" ? "" : column + " " + direction;
      said.textContent = direction === "none" ? "Rows are " + words.none : "Sorted by " + names[column] + ", " + words[direction];
    }

    columns.forEach((cell, place) => {
      const button = document.createElement("button");
      const sign = document.createElement("span");
      button.type = "button";
      button.className = "sort";
      button.setAttribute("aria-label", "Sort by " + names[place]);
      sign.setAttribute("aria-hidden", "true");
      sign.textContent = signs.none;
      button.append(sign);
      button.dataset.state = "none";
      button.addEventListener("click", () => sort(place, next[button.dataset.state]));
      cell.append(button);
      buttons.push(button);
    });

    const holder = table.closest(".report-table");
    if (!holder) return;
    const label = document.createElement("label");
    label.className = "sort-choice";
    label.append("Sort by ");
    choice = document.createElement("select");
    choice.append(new Option("the report's order", ""));
    names.forEach((name, place) => {
      choice.append(new Option(name + " ↑", place + " ascending"), new Option(name + " ↓", place + " descending"));
    });
    choice.addEventListener("change", () => {
      const [place, direction] = choice.value.split(" ");
      sort(Number(place || 0), direction || "none");
    });
    label.append(choice);
    holder.prepend(label);
  }

  document.querySelectorAll(".report-table table, table.sortable").forEach(enable);
})();
