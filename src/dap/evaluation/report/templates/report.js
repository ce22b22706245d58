"use strict";
(() => {
  const root = document.documentElement;
  const fail = (what) => { root.dataset.error = String(what); };
  addEventListener("error", (event) => fail(event.message));
  addEventListener("unhandledrejection", (event) => fail(event.reason));
  document.addEventListener("securitypolicyviolation", (event) => fail(`blocked: ${event.violatedDirective}`));

  // Storage may be forbidden for local files; the theme then lasts as long as the page.
  const KEY = "dap-report-theme";
  const remembered = () => { try { return localStorage.getItem(KEY); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem(KEY, theme); } catch { /* nothing to keep it in */ } };
  const named = location.hash === "#dark" || location.hash === "#light" ? location.hash.slice(1) : remembered();
  if (named === "dark" || named === "light") root.dataset.theme = named;

  const themeButton = () => {
    const button = document.getElementById("theme");
    const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    const label = () => { button.textContent = dark() ? "Light" : "Dark"; button.setAttribute("aria-label", `Switch to ${dark() ? "light" : "dark"} colours`); };
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      remember(root.dataset.theme);
      label();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
    label();
    button.hidden = false;
  };

  const sortable = (table) => {
    const body = table.tBodies[0];
    const headers = [...table.tHead.rows[0].cells];
    const key = (row, column) => row.cells[column].dataset.sort ?? "";
    const compare = (a, b, numeric) => numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true });
    headers.forEach((header, column) => {
      if (header.classList.contains("plain")) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => {
        const rows = [...body.rows];
        const known = rows.filter((row) => key(row, column) !== "");
        const numeric = known.every((row) => !Number.isNaN(Number(key(row, column))));
        const now = header.getAttribute("aria-sort");
        const direction = now ? (now === "ascending" ? "descending" : "ascending") : numeric && header.dataset.better !== "lower" ? "descending" : "ascending";
        const sign = direction === "ascending" ? 1 : -1;
        known.sort((a, b) => sign * compare(key(a, column), key(b, column), numeric));
        body.append(...known, ...rows.filter((row) => key(row, column) === ""));
        headers.forEach((other) => other.removeAttribute("aria-sort"));
        header.setAttribute("aria-sort", direction);
        document.getElementById("status").textContent = `sorted by ${button.firstChild.textContent.trim()}, ${direction}`;
      });
    });
  };

  const tips = () => {
    const tip = document.getElementById("tip");
    const [heading, verdict, pictures, text] = tip.children;
    const reals = document.querySelectorAll("#reals img");
    const figure = (image, caption) => {
      const made = document.createElement("figure");
      const picture = document.createElement("img");
      const said = document.createElement("figcaption");
      picture.src = image.src;
      picture.alt = "";
      picture.className = image.className || "exact";
      said.textContent = caption;
      made.append(picture, said);
      return made;
    };
    let owner = null;
    let timer = 0;
    const hide = () => {
      owner?.removeAttribute("aria-describedby");
      owner = null;
      tip.hidden = true;
    };
    const later = () => { clearTimeout(timer); timer = setTimeout(hide, 150); };
    const show = (tile) => {
      clearTimeout(timer);
      if (owner === tile) return;
      hide();
      owner = tile;
      const image = tile.querySelector("img");
      const near = JSON.parse(tile.dataset.near || "[]").filter((one) => one.place !== null && reals[one.place]);
      const nearest = near.map((one) => figure(reals[one.place], `nearest real ${one.space}: ${one.name}`));
      pictures.replaceChildren(figure(image, nearest.length ? "distilled" : ""), ...nearest);
      heading.textContent = tile.parentElement.getAttribute("aria-label");
      verdict.hidden = !tile.querySelector(".mark.copy");
      const told = near.map((one) => `nearest real ${tip.dataset.noun} ${one.space}: ${one.name}`);
      text.textContent = tile.dataset.about.split(" · ").filter((line) => !told.includes(line) && line !== verdict.textContent).join("\n");
      tip.hidden = false;
      tile.setAttribute("aria-describedby", "tip");
      // Beside the row where there is room, so that no image is covered; else above or below the tile.
      const at = tile.getBoundingClientRect();
      const beside = tile.parentElement.lastElementChild.getBoundingClientRect().right + 14;
      if (beside + tip.offsetWidth + 8 <= root.clientWidth) {
        tip.style.left = `${beside}px`;
        tip.style.top = `${Math.min(Math.max(8, at.top), Math.max(8, innerHeight - tip.offsetHeight - 8))}px`;
        return;
      }
      const left = Math.min(Math.max(8, at.left + at.width / 2 - tip.offsetWidth / 2), root.clientWidth - tip.offsetWidth - 8);
      const below = at.bottom + 8;
      tip.style.left = `${left}px`;
      tip.style.top = `${below + tip.offsetHeight < innerHeight ? below : Math.max(8, at.top - tip.offsetHeight - 8)}px`;
    };
    for (const tile of document.querySelectorAll("button.tile")) {
      tile.dataset.about = tile.title;
      tile.removeAttribute("title");
    }
    const tileAt = (event) => event.target instanceof Element ? event.target.closest("button.tile") : null;
    document.addEventListener("pointerover", (event) => {
      if (event.pointerType === "touch") return;
      const tile = tileAt(event);
      if (tile) show(tile);
      else if (tip.contains(event.target)) clearTimeout(timer);
      else if (owner && owner !== document.activeElement) later();
    });
    document.addEventListener("focusin", (event) => { const tile = tileAt(event); if (tile) show(tile); else hide(); });
    document.addEventListener("click", (event) => { const tile = tileAt(event); if (tile) show(tile); else if (!tip.contains(event.target)) hide(); });
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
    addEventListener("scroll", hide, { passive: true });
  };

  // One tab stop a class; arrow keys walk over its images.
  const walkable = (grid) => {
    const rows = [...grid.querySelectorAll("[role=group]")].map((row) => [...row.children]);
    const tiles = rows.flat().filter((tile) => tile.matches("button"));
    tiles.forEach((tile, i) => { tile.tabIndex = i ? -1 : 0; });
    grid.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      const r = rows.findIndex((row) => row.includes(event.target));
      if (!step || r < 0) return;
      event.preventDefault();
      let [y, x] = [r, rows[r].indexOf(event.target)];
      do { y += step[0]; x += step[1]; } while (rows[y]?.[x] && !rows[y][x].matches("button"));
      const next = rows[y]?.[x];
      if (!next) return;
      tiles.forEach((tile) => { tile.tabIndex = -1; });
      next.tabIndex = 0;
      next.focus();
    });
  };

  // One class of a map alone: the others fade.
  const pickable = (map) => {
    const picks = [...map.querySelectorAll(".pick")];
    const marks = [...map.querySelectorAll("path[data-class]")];
    picks.forEach((pick) => pick.addEventListener("click", () => {
      const on = pick.getAttribute("aria-pressed") !== "true";
      picks.forEach((other) => other.setAttribute("aria-pressed", String(on && other === pick)));
      marks.forEach((mark) => mark.classList.toggle("dim", on && mark.dataset.class !== pick.dataset.class));
    }));
  };

  const unfold = () => {
    const button = document.getElementById("unfold");
    if (!button) return;
    const classes = [...document.querySelectorAll("details.class")];
    const label = () => { button.textContent = classes.every((one) => one.open) ? "Close all" : "Open all"; };
    button.addEventListener("click", () => { const open = !classes.every((one) => one.open); classes.forEach((one) => { one.open = open; }); });
    classes.forEach((one) => one.addEventListener("toggle", label));
    button.hidden = classes.length < 2;
    label();
  };

  const copyable = (block) => {
    const code = block.querySelector("pre");
    if (!code) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText([...code.children].map((line) => line.textContent).join("\n"));
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    block.querySelector(".heading").append(button);
  };

  document.addEventListener("DOMContentLoaded", () => {
    themeButton();
    document.querySelectorAll("table.sortable").forEach(sortable);
    document.querySelectorAll(".slots").forEach(walkable);
    document.querySelectorAll(".map-group").forEach(pickable);
    tips();
    unfold();
    document.querySelectorAll(".command").forEach(copyable);
    root.dataset.ready = "true";
  });
})();
