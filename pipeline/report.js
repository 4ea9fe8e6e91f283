"use strict";
// Optional: a click on a column's title sorts the table by it. All is readable without.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const number = (row, column) => parseFloat(row.cells[column].innerText.replace(/,/g, "").replace("\u2212", "-"));
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const figures = head.classList.contains("n");
      const rows = [...body.rows].sort((a, b) => {
        if (!figures) return a.cells[column].innerText.localeCompare(b.cells[column].innerText);
        const [x, y] = [number(a, column), number(b, column)];
        return Number.isNaN(x) - Number.isNaN(y) || x - y;
      });
      body.append(...(up ? rows : rows.reverse()));
    });
  });
}
