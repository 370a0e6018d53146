"use strict";
// The report's own script: the picture's points answer to pointer and keyboard, and the samples can
// be filtered. Text from the data is set as text only, so that nothing in it is ever markup.
(() => {
  const data = (id) => {
    const element = document.getElementById(id);
    return element ? JSON.parse(element.textContent) : null;
  };
  const make = (tag, props = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(props)) {
      if (name in element) element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  };
  const SVG = "http://www.w3.org/2000/svg";

  // --- The picture ---------------------------------------------------------------------------
  function picture(points, figure) {
    const svg = figure.querySelector("svg");
    const parts = [...svg.querySelectorAll("[id]")];
    const of = (kinds, key) => {
      const wanted = new RegExp(`-(${kinds})-${key}(-|$)`);
      return parts.filter((part) => wanted.test(part.id));
    };
    const stage = make("div", { className: "stage" });
    svg.replaceWith(stage);
    const card = make("div", { className: "point", role: "status" });
    card.hidden = true;
    stage.append(svg, card);
    let current = null;

    const hide = () => {
      card.hidden = true;
      if (current) current.classList.remove("on");
      current = null;
    };
    const show = (point, hit) => {
      hide();
      current = hit;
      hit.classList.add("on");
      const title = make("b", { textContent: point.title });
      title.style.color = `var(--${point.colour})`;
      const facts = make("dl");
      for (const [name, value] of point.facts)
        facts.append(make("dt", { textContent: name }), make("dd", { textContent: value }));
      card.replaceChildren(title, facts);
      card.hidden = false;
      const box = stage.getBoundingClientRect();
      const at = hit.getBoundingClientRect();
      const left = at.left + at.width / 2 - box.left - card.offsetWidth / 2;
      card.style.left = `${Math.max(0, Math.min(left, box.width - card.offsetWidth))}px`;
      const above = at.top - box.top - card.offsetHeight - 4;
      card.style.top = `${above >= 0 ? above : at.bottom - box.top + 4}px`;
    };

    const legend = make("div", { className: "legend", role: "group", "aria-label": "Policies shown" });
    points.forEach((point, key) => {
      const mark = parts.find((part) => part.id.endsWith(`-mark-${key}`));
      if (!mark) return;
      const box = mark.getBBox();
      const hit = document.createElementNS(SVG, "circle");
      hit.setAttribute("cx", box.x + box.width / 2);
      hit.setAttribute("cy", box.y + box.height / 2);
      hit.setAttribute("r", 11);
      hit.setAttribute("class", "hit");
      hit.setAttribute("tabindex", "0");
      hit.setAttribute("role", "img");
      hit.setAttribute("aria-label", [point.title, ...point.facts.map((f) => f.join(" "))].join(", "));
      hit.style.setProperty("--c", `var(--${point.colour})`);
      mark.parentNode.append(hit);
      hit.addEventListener("pointerenter", () => show(point, hit));
      hit.addEventListener("pointerleave", (event) => {
        if (event.pointerType === "mouse" && document.activeElement !== hit) hide();
      });
      hit.addEventListener("focus", () => show(point, hit));
      hit.addEventListener("blur", hide);
      hit.addEventListener("click", () => show(point, hit));
      const dot = make("span", { className: "dot" });
      dot.style.background = `var(--${point.colour})`;
      const button = make("button", { type: "button", "aria-pressed": "true" }, dot, point.title);
      button.addEventListener("click", () => {
        const on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(on));
        for (const part of [...of("mark|name|path", key), hit]) part.style.display = on ? "" : "none";
        for (const line of parts.filter((part) => /-line-/.test(part.id))) {
          const keys = line.id.split("-line-")[1].split("-");
          if (keys.includes(String(key))) line.style.display = on ? "" : "none";
        }
      });
      legend.append(button);
    });
    document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
    stage.after(legend);
  }

  // --- The samples ---------------------------------------------------------------------------
  const PAGE = 12;
  const REWARD = 3, GOLD = 4, KL = 5;
  const ORDERS = [
    ["as drawn", null, 0],
    ["reward, high first", REWARD, -1], ["reward, low first", REWARD, 1],
    ["judge, high first", GOLD, -1], ["judge, low first", GOLD, 1],
    ["KL, high first", KL, -1], ["KL, low first", KL, 1],
  ];
  const written = (value, digits) =>
    value.toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−");

  function explorer(found, place) {
    const { policies, prompts, answers, examples, kinds, judged, reference } = found;
    const kindWords = new Map(kinds);
    const scale = Math.max(1e-9, ...policies.map((_, p) => {
      const sizes = answers.filter((a) => a[1] === p && a[REWARD] !== null)
        .map((a) => Math.abs(a[REWARD])).sort((a, b) => a - b);
      return sizes.length ? sizes[Math.floor(0.98 * (sizes.length - 1))] : 0;
    }));
    const lower = new Map(); // row → what a search looks in, made at the first search
    const haystack = (row, texts) => {
      let text = lower.get(row);
      if (text === undefined) {
        text = [prompts[row[0]], ...texts].join("\n").toLowerCase();
        lower.set(row, text);
      }
      return text;
    };

    const choose = (label, options) => {
      const select = make("select");
      options.forEach(([value, text]) => select.append(make("option", { value, textContent: text })));
      return [make("label", {}, label, select), select];
    };
    const [policyBox, policy] = choose("policy", [["", "all"],
      ...policies.map(([title], at) => [String(at), title])]);
    const [kindBox, kind] = choose("show", [["", "all answers"], ...kinds]);
    const [orderBox, order] = choose("order", ORDERS.map(([text, field], at) => [String(at), text, field])
      .filter(([, , field]) => judged || field !== GOLD));
    const search = make("input", { type: "search", placeholder: "text" });
    const count = make("p", { className: "note", role: "status" });
    const list = make("div", { className: "samples" });
    const before = make("button", { type: "button", textContent: "Back" });
    const next = make("button", { type: "button", textContent: "Next" });
    let rows = [], page = 0;

    const line = (policyAt, text, reward, gold, kl) => {
      const [title, colour] = policies[policyAt];
      const who = make("b", { textContent: title });
      who.style.color = `var(--${colour})`;
      const numbers = [];
      if (reward !== null) numbers.push(`reward ${written(reward, 1)}`);
      if (gold !== null && judged) numbers.push(`judge ${written(gold, 1)}`);
      if (kl !== null) numbers.push(`KL ${written(kl, 1)}`);
      const box = make("div", { className: "line" },
        make("p", { className: "who" }, who, " " + numbers.join(" · ")),
        make("p", { className: "text", dir: "auto", textContent: text }));
      const share = reward === null ? 0 : Math.max(-1, Math.min(1, reward / scale));
      box.style.setProperty("--s", `${Math.round(100 * Math.abs(share))}%`);
      box.style.setProperty("--g", `var(--${share >= 0 ? "good" : "bad"})`);
      return box;
    };
    const card = (row) => {
      const prompt = make("p", { className: "prompt", dir: "auto", textContent: `${prompts[row[0]]} …` });
      const box = make("article", {}, prompt);
      if (kind.value) {
        const whom = row[2] < 0 ? "" : `: ${policies[row[2]][0]}`;
        box.prepend(make("p", { className: "note", textContent: kindWords.get(row[1]) + whom }));
        // Those that the example is about; the others' answers are there for who asks.
        const subject = (answer) => row[2] < 0 || answer[0] === row[2] || answer[0] === reference;
        row[3].filter(subject).forEach((answer) => box.append(line(...answer)));
        const others = row[3].filter((answer) => !subject(answer));
        if (others.length) box.append(make("details", {},
          make("summary", { textContent: `${others.length} other policies` }),
          ...others.map((answer) => line(...answer))));
      } else box.append(line(row[1], row[2], row[REWARD], row[GOLD], row[KL]));
      return box;
    };
    const draw = () => {
      const from = page * PAGE;
      list.replaceChildren(...rows.slice(from, from + PAGE).map(card));
      const to = Math.min(from + PAGE, rows.length);
      count.textContent = rows.length
        ? `${from + 1} to ${to} of ${rows.length.toLocaleString("en")}` : "Nothing fits.";
      before.disabled = page === 0;
      next.disabled = to >= rows.length;
    };
    const filter = () => {
      const wanted = search.value.trim().toLowerCase();
      if (kind.value) {
        rows = examples.filter((e) => e[1] === kind.value
          && (!policy.value || e[2] === -1 || e[2] === Number(policy.value))
          && (!wanted || haystack(e, e[3].map((a) => a[1])).includes(wanted)));
      } else {
        const [, field, sign] = ORDERS[Number(order.value)];
        rows = answers.filter((a) => (!policy.value || a[1] === Number(policy.value))
          && (!wanted || haystack(a, [a[2]]).includes(wanted)));
        if (field !== null) rows.sort((a, b) =>
          (a[field] === null) - (b[field] === null) || sign * (a[field] - b[field]));
      }
      order.disabled = Boolean(kind.value);
      page = 0;
      draw();
    };
    const turn = (by) => {
      page += by;
      draw();
      place.scrollIntoView({ block: "start" });
    };
    before.addEventListener("click", () => turn(-1));
    next.addEventListener("click", () => turn(1));
    for (const control of [policy, kind, order]) control.addEventListener("change", filter);
    search.addEventListener("input", filter);
    const controls = make("div", { className: "controls" }, policyBox, kindBox, orderBox,
      make("label", {}, "search", search));
    place.replaceChildren(controls, count, list, make("div", { className: "pager" }, before, next));
    filter();
  }

  const points = data("points"), figure = document.getElementById("fig-reward_kl");
  if (points && figure) picture(points, figure);
  const found = data("answers"), place = document.getElementById("explorer");
  if (found && place) explorer(found, place);
})();
