// Tables sort by any column: a click for ascending, one more for descending, a third for the order they came in.
for (const table of document.querySelectorAll("main table")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const was = heading.getAttribute("aria-sort");
      const next = was === "ascending" ? "descending" : was === "descending" ? null : "ascending";
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      if (next) heading.setAttribute("aria-sort", next);
      body.append(...(next ? sorted(original, column, next === "descending") : original));
    });
  });
}

function sorted(rows, column, isDescending) {
  const texts = new Map(rows.map((row) => [row, row.cells[column].dataset.value ?? row.cells[column].textContent.trim()]));
  const numbers = new Map(rows.map((row) => [row, parseFloat(texts.get(row).replace("−", "-"))]));
  const isNumeric = rows.some((row) => !Number.isNaN(numbers.get(row)));
  const sign = isDescending ? -1 : 1;
  return [...rows].sort((a, b) => {
    const [p, q] = [numbers.get(a), numbers.get(b)];
    if (!isNumeric) return sign * texts.get(a).localeCompare(texts.get(b), undefined, { numeric: true });
    if (Number.isNaN(p) || Number.isNaN(q)) return Number(Number.isNaN(p)) - Number(Number.isNaN(q)); // empty: last
    return sign * (p - q);
  });
}
