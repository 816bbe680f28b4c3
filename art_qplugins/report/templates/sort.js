// Tables sort by a click on a heading. Without this script they are complete, in the order of the run.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  if (!body || !table.tHead) continue; // a table of another package may have no head
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const values = new Map(rows.map((row) => {
        const cell = row.cells[column];
        return [row, cell.dataset.value ?? cell.textContent.trim()];
      }));
      const number = (row) => (values.get(row) === "" ? NaN : Number(values.get(row)));
      const blank = (row) => Number(["", "–"].includes(values.get(row)));
      const numeric = rows.every((row) => blank(row) || !Number.isNaN(number(row)));
      body.append(...[...rows].sort((a, b) => {
        if (blank(a) !== blank(b)) return blank(a) - blank(b); // what has no value comes last either way
        const order = numeric ? number(a) - number(b) || 0
          : values.get(a).localeCompare(values.get(b), undefined, { numeric: true });
        return up ? order : -order;
      }));
    });
  });
}
