"use strict";
(() => {
  const part = (name) => document.getElementById(`gallery-${name}`);
  const [form, list, more, dialog] = ["filters", "images", "more", "dialog"].map(part);
  const data = JSON.parse(part("data").textContent);
  // The first pictures stand in the list, for browsers without script, and nowhere else.
  data.images.forEach((image, n) => {
    image.picture ||= list.children[n]?.querySelector("img")?.src ?? "";
  });
  let visible = data.images;
  let drawn = data.batch;
  let at = 0;

  // All text of users and judges goes through here, and stays text.
  const element = (tag, text, properties) =>
    Object.assign(document.createElement(tag), { textContent: text }, properties);

  const picture = (image, alt) =>
    image.picture
      ? element("img", "", { src: image.picture, alt, className: image.crisp ? "pixels" : "" })
      : element("span", image.absent, { className: "no-picture" });

  const wanted = () => Object.fromEntries(new FormData(form));
  const scoreOf = (image, column) => image.scores[data.scores.indexOf(column)] ?? null;

  function within(score, { min, max }) {
    if (!min && !max) return true;
    return score !== null && (!min || score >= Number(min)) && (!max || score <= Number(max));
  }

  function matches(image, want) {
    const judgement = image.reason === null ? "scored" : "unscored";
    return (
      (!want.prompt || want.prompt === String(image.prompt_index)) &&
      (!want.seed || want.seed === String(image.seed)) &&
      data.facets.every((name, n) => !want[name] || want[name] === data.cells[image.cell][n]) &&
      (!want.judgement || [judgement, `${judgement}: ${image.reason}`].includes(want.judgement)) &&
      within(scoreOf(image, want.score), want)
    );
  }

  function sorted(images, order) {
    const [name, column] = order.split(/:(.*)/s);
    if (name === "prompt") return images;
    if (!column) return [...images].sort((a, b) => a[name] - b[name]);
    const sign = name === "highest" ? -1 : 1;
    const value = (image) => sign * (scoreOf(image, column) ?? sign * Infinity);
    return [...images].sort((a, b) => (value(a) === value(b) ? 0 : value(a) - value(b)));
  }

  function tile(image) {
    const button = element("button", "", { type: "button", className: "tile", tabIndex: -1 });
    button.append(
      picture(image, ""),
      element("b", image.title),
      " ",
      element("span", image.text),
      " ",
      element("i", image.prompt),
    );
    button.dataset.file = image.file;
    const item = document.createElement("li");
    item.append(button);
    return item;
  }

  const tiles = () => [...list.querySelectorAll("button")];

  function draw() {
    const missing = visible.slice(list.children.length, drawn);
    list.append(...missing.map(tile));
    const first = tiles()[0];
    if (first && !list.querySelector('[tabindex="0"]')) first.tabIndex = 0;
    const left = visible.length - list.children.length;
    more.hidden = left === 0;
    more.textContent = `Show ${Math.min(left, data.batch)} more of ${left}`;
    const count = (n) => n.toLocaleString("en");
    const all = visible.length === data.images.length;
    part("count").textContent =
      `Showing ${count(list.children.length)} of ` +
      (all ? "" : `${count(visible.length)} that match, of `) +
      `${count(data.images.length)} images` +
      (data.images.length === data.total ? "." : ` (the run has ${count(data.total)}).`);
  }

  function filter() {
    const want = wanted();
    visible = sorted(data.images.filter((image) => matches(image, want)), want.sort);
    drawn = data.batch;
    list.replaceChildren();
    draw();
  }

  // The address after "#" names the image that is open, or the filters that are set.
  function remember(pairs) {
    try {
      history.replaceState(null, "", `#${pairs.join("&")}`);
    } catch {
      // A viewer that frames the page may forbid it. All else works.
    }
  }
  const encoded = (text) => text.split("/").map(encodeURIComponent).join("/");
  const rememberFilters = () =>
    remember([
      "gallery",
      ...Object.entries(wanted()).flatMap(([name, value]) =>
        value && form.elements[name].selectedIndex !== 0 ? [`${name}=${encoded(value)}`] : [],
      ),
    ]);

  function asked() {
    try {
      const pairs = location.hash.slice(1).split("&").map((pair) => pair.split(/=(.*)/s, 2));
      return new Map(pairs.map(([name, value = ""]) => [name, decodeURIComponent(value)]));
    } catch {
      return new Map();
    }
  }

  function open(index) {
    at = (index + visible.length) % visible.length;
    const image = visible[at];
    part("name").textContent = `${image.title} · seed ${image.seed}`;
    part("place").textContent = `${at + 1} of ${visible.length}`;
    part("picture").replaceChildren(picture(image, `${image.title}, seed ${image.seed}`));
    part("facts").replaceChildren(
      ...image.facts.flatMap(([name, value]) => [element("dt", name), element("dd", value)]),
    );
    part("replies").replaceChildren(
      ...image.replies.flatMap(({ about, raw, note }) => [
        element("p", `Judge: ${about}`),
        ...(raw === null ? [] : [element("pre", raw)]),
        ...(note ? [element("p", note)] : []),
      ]),
    );
    remember([`image=${encoded(image.file)}`]);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }

  function closed() {
    rememberFilters();
    drawn = Math.max(drawn, at + 1);
    draw();
    tiles()[at]?.focus();
  }

  function follow() {
    const pairs = asked();
    if (pairs.has("image")) {
      form.reset();
      filter();
      const found = visible.findIndex((image) => image.file === pairs.get("image"));
      if (found >= 0) return open(found);
      part("count").textContent =
        "This gallery does not contain the image of this link. Look for the file in the run folder.";
    } else if (pairs.has("gallery")) {
      for (const control of form.elements) {
        if (control.name && pairs.has(control.name)) control.value = pairs.get(control.name);
      }
      filter();
    } else {
      return;
    }
    document.getElementById("gallery").scrollIntoView();
  }

  function walk(event) {
    const all = tiles();
    const from = all.indexOf(document.activeElement);
    const top = all[0]?.getBoundingClientRect().top;
    const below = all.findIndex((button) => button.getBoundingClientRect().top > top);
    const columns = below < 0 ? all.length : below;
    const to = {
      ArrowLeft: from - 1,
      ArrowRight: from + 1,
      ArrowUp: from - columns,
      ArrowDown: from + columns,
      Home: 0,
      End: all.length - 1,
    }[event.key];
    if (from < 0 || !all[to]) return;
    event.preventDefault();
    all[to].focus();
  }

  form.addEventListener("input", () => {
    filter();
    rememberFilters();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  part("clear").addEventListener("click", () => {
    form.reset();
    filter();
    rememberFilters();
  });
  more.addEventListener("click", () => {
    const first = list.children.length;
    drawn += data.batch;
    draw();
    tiles()[first]?.focus();
  });
  list.addEventListener("click", ({ target }) => {
    const index = tiles().indexOf(target.closest("button"));
    if (index >= 0) open(index);
  });
  list.addEventListener("focusin", ({ target }) => {
    for (const button of list.querySelectorAll('[tabindex="0"]')) button.tabIndex = -1;
    target.tabIndex = 0;
  });
  list.addEventListener("keydown", walk);
  dialog.addEventListener("keydown", ({ key }) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
    if (step) open(at + step);
  });
  dialog.addEventListener("click", ({ target }) => {
    if (target === dialog || "close" in target.dataset) dialog.close();
    else if (target.dataset.step) open(at + Number(target.dataset.step));
  });
  dialog.addEventListener("close", closed);
  addEventListener("hashchange", follow);

  form.hidden = false;
  part("help").hidden = false;
  filter();
  follow();
})();
