"use strict";
// Markdown as DOM nodes: text of a model is never read as HTML.

const DEEPEST = 8;
const LONGEST = 20000; // characters of a paragraph that is searched for emphasis and links
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(\S.*)$/;
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}>/;
const TASK = /^\[([ xX])\]\s+(?=\S)/;
const indentOf = (line) => line.search(/\S/);
const startsBlock = (line) => [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(line));

function markdown(lines, depth = 0) {
  const found = document.createDocumentFragment();
  if (depth > DEEPEST) return found.append(lines.join("\n")), found;
  for (let i = 0; i < lines.length;) {
    const line = lines[i];
    let match;
    let end;
    if (indentOf(line) < 0) i++;
    else if ((match = FENCE.exec(line))) {
      const close = new RegExp(`^ {0,3}${match[1][0]}{${match[1].length},}\\s*$`);
      const start = ++i;
      while (i < lines.length && !close.test(lines[i])) i++;
      found.append(codeBlock(lines.slice(start, i++).join("\n"), match[2]));
    } else if ((match = HEADING.exec(line))) {
      found.append(inline(match[2].replace(/\s#+\s*$/, ""), make(`h${Math.min(6, match[1].length + 2)}`)));
      i++;
    } else if (RULE.test(line)) {
      found.append(make("hr"));
      i++;
    } else if (QUOTE.test(line)) {
      const own = [];
      while (i < lines.length && QUOTE.test(lines[i])) own.push(lines[i++].replace(/^ {0,3}> ?/, ""));
      found.append(make("blockquote", {}, markdown(own, depth + 1)));
    } else if (ITEM.test(line)) i = list(found, lines, i, depth);
    else if (startsTable(lines, i)) i = table(found, lines, i);
    else if ((end = formulaEnd(lines, i))) {
      found.append(make("div", { className: "formula", tabIndex: 0 }, formula(lines.slice(i, end).join("\n").trim())));
      i = end;
    } else {
      const own = [line];
      while (++i < lines.length && indentOf(lines[i]) >= 0 && !startsBlock(lines[i]) && !startsTable(lines, i) && !formulaEnd(lines, i)) own.push(lines[i]);
      found.append(inline(own.join("\n"), make("p")));
    }
  }
  return found;
}

/** A list with what is indented below its items; the number of the first line behind it. */
function list(found, lines, i, depth) {
  const [, lead, mark] = ITEM.exec(lines[i]);
  const ordered = /\d/.test(mark);
  const node = make(ordered ? "ol" : "ul", ordered ? { start: Number.parseInt(mark, 10) } : {});
  for (let match; i < lines.length && (match = ITEM.exec(lines[i])) && /\d/.test(match[2]) === ordered;) {
    const task = TASK.exec(match[3]);
    const own = [task ? match[3].slice(task[0].length) : match[3]];
    while (++i < lines.length) {
      const indent = indentOf(lines[i]);
      if (indent < 0 && indentOf(lines[i + 1] ?? "") < lead.length + 2) break;
      if (indent >= 0 && indent < lead.length + 2 && startsBlock(lines[i])) break;
      own.push(lines[i].slice(Math.min(Math.max(indent, 0), match[0].length - match[3].length)));
    }
    const item = make("li", {}, markdown(own, depth + 1));
    if (task) {
      item.className = "task";
      item.prepend(make("input", { type: "checkbox", disabled: true, checked: task[1] !== " ", ariaLabel: own[0].slice(0, 100) }));
    }
    node.append(item);
    while (i + 1 < lines.length && indentOf(lines[i]) < 0 && ITEM.test(lines[i + 1])) i++;
  }
  found.append(node);
  return i;
}

// --- tables ----------------------------------------------------------------------------------------

const cells = (line) => line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));

function startsTable(lines, i) {
  const below = lines[i + 1]?.trim() ?? "";
  if (!lines[i].includes("|") || !below.includes("-") || !/^[\s|:-]+$/.test(below)) return false;
  const marks = cells(below);
  return marks.every((mark) => /^:?-+:?$/.test(mark)) && marks.length === cells(lines[i]).length;
}

function table(found, lines, i) {
  const sides = cells(lines[i + 1]).map((mark) => ({ "11": "center", "01": "right" })[`${+mark.startsWith(":")}${+mark.endsWith(":")}`] ?? "");
  const row = (line, tag) => {
    const texts = cells(line);
    return make("tr", {}, ...sides.map((className, at) => inline(texts[at] ?? "", make(tag, { className }))));
  };
  const body = make("tbody");
  const node = make("table", {}, make("thead", {}, row(lines[i], "th")), body);
  for (i += 2; i < lines.length && lines[i].includes("|") && !startsBlock(lines[i]); i++) body.append(row(lines[i], "td"));
  found.append(make("div", { className: "table", tabIndex: 0 }, node));
  return i;
}

// --- code ------------------------------------------------------------------------------------------

function codeBlock(text, language) {
  const copied = button("Copy code", () => copy(text, copied));
  return make("div", { className: "code" },
    make("div", {}, make("span", { textContent: language || "code" }), copied),
    make("pre", { tabIndex: 0 }, make("code", {}, highlighted(text, language.toLowerCase()))));
}

const COMMENTS = Object.entries({ // how a comment begins -> languages
  "#[^\\n]*": "python py bash sh shell zsh console yaml yml toml ruby rb r perl dockerfile makefile make ini conf nix elixir",
  "\\/\\/[^\\n]*|\\/\\*[\\s\\S]*?(?:\\*\\/|$)": "js javascript mjs jsx ts typescript tsx c h cpp c++ hpp cc java go golang rust rs kotlin swift php cs csharp json jsonc css scss scala dart zig",
  "--[^\\n]*": "sql lua haskell hs",
});
const KEYWORDS = new Set(("abstract and as assert async await begin bool boolean break case catch char class const continue def default defer del delete do done double " +
  "echo elif else elsif end enum esac except export extends extern false False fi final finally float fn for foreach from func function global go if impl import in " +
  "include int interface is lambda let local long loop match mod module mut namespace new nil none None not null nullptr of or package pass private protected pub public " +
  "raise require return self short signed sizeof static string struct super switch template then this throw trait true True try type typedef typeof undefined union " +
  "unsigned until use using val var virtual void when where while with yield select insert update into values set create table join left right inner outer on group by " +
  "order having limit distinct primary key drop alter").split(" "));

/** Comments, strings, numbers and keywords, each as a span; other languages stay plain. */
function highlighted(text, language) {
  const comment = COMMENTS.find(([, languages]) => languages.split(" ").includes(language))?.[0];
  if (!comment || text.length > LONGEST) return text;
  const tokens = new RegExp(`(${comment})|("""[\\s\\S]*?"""|"(?:[^"\\\\\\n]|\\\\.)*"|'(?:[^'\\\\\\n]|\\\\.)*'|\`(?:[^\`\\\\]|\\\\[\\s\\S])*\`)|(\\b\\d[\\w.]*)|([A-Za-z_$][\\w$]*)`, "g");
  const found = document.createDocumentFragment();
  let done = 0;
  for (const match of text.matchAll(tokens)) {
    const [all, isComment, isString, isNumber, word] = match;
    const isWord = word && (KEYWORDS.has(word) || (language === "sql" && KEYWORDS.has(word.toLowerCase())));
    const className = isComment ? "hc" : isString ? "hs" : isNumber ? "hn" : isWord ? "hk" : "";
    if (!className) continue;
    found.append(text.slice(done, match.index), make("span", { className, textContent: all }));
    done = match.index + all.length;
  }
  found.append(text.slice(done));
  return found;
}

// --- inside a line ---------------------------------------------------------------------------------

const EMPHASIS = { "**": "strong", __: "strong", "~~": "s", "*": "em", _: "em" };
const WORD = /[\p{L}\p{N}]/u;
const ENTITIES = Object.fromEntries(("amp & lt < gt > quot \" apos ' nbsp \u00a0 copy © reg ® trade ™ hellip … mdash — ndash – lsquo ‘ rsquo ’ ldquo “ rdquo ” laquo « raquo » " +
  "bull • middot · deg ° plusmn ± times × divide ÷ frac12 ½ frac14 ¼ sup2 ² sup3 ³ micro µ euro € pound £ yen ¥ cent ¢ sect § para ¶ larr ← uarr ↑ rarr → darr ↓ harr ↔ " +
  "rArr ⇒ le ≤ ge ≥ ne ≠ asymp ≈ equiv ≡ infin ∞ sum ∑ minus − radic √ alpha α beta β gamma γ delta δ epsilon ε theta θ lambda λ mu μ pi π sigma σ phi φ omega ω Delta Δ Omega Ω").split(" ")
  .reduce((pairs, word, at, words) => (at % 2 ? [...pairs, [words[at - 1], word]] : pairs), []));

function entity(name) {
  if (name[0] !== "#") return Object.hasOwn(ENTITIES, name) ? ENTITIES[name] : null;
  const code = /^#x/i.test(name) ? Number.parseInt(name.slice(2), 16) : Number.parseInt(name.slice(1), 10);
  return code > 31 && code < 0x110000 && (code < 0xd800 || code > 0xdfff) ? String.fromCodePoint(code) : null;
}

function inline(text, into, depth = 0) {
  if (text.length > LONGEST || depth > DEEPEST) return into.append(text), into;
  const marks = /\\([!-/:-@[-`{-~])|`+|\$\$?|\*\*|__|~~|\*|_|!?\[|&(#\d{1,7}|#[xX][\da-fA-F]{1,6}|[a-zA-Z][a-zA-Z\d]{1,9});|<https?:\/\/[^\s<>]{1,2000}>|https?:\/\/[^\s<>"`]{1,2000}|\n/g;
  const unclosed = new Set();
  let done = 0;
  for (let match; (match = marks.exec(text));) {
    const [mark, escaped, character] = match;
    const start = match.index + mark.length;
    let node = null;
    let end = start;
    if (mark[0] === "$" || escaped === "(" || escaped === "[") {
      end = unclosed.has(mark) ? -1 : inlineFormulaEnd(text, mark, start);
      if (end > 0) node = formula(text.slice(match.index, end));
      else if (end < 0) unclosed.add(mark);
    } else if (escaped) node = escaped;
    else if (character) node = entity(character);
    else if (mark === "\n") node = make("br");
    else if (mark[0] === "<") node = link(mark.slice(1, -1), make("a", { textContent: mark.slice(1, -1) }));
    else if (mark.startsWith("http")) {
      const url = mark.replace(/[.,;:!?)\]}'*_]+$/, "");
      node = link(url, make("a", { textContent: url }));
      end = match.index + url.length;
    } else if (mark.endsWith("[")) [node, end] = bracketed(text, start, depth);
    else if (!unclosed.has(mark)) {
      const close = closing(text, mark, match.index, start);
      if (close === -1) unclosed.add(mark);
      else if (close) {
        const inner = text.slice(start, close);
        node = mark[0] === "`" ? make("code", { textContent: inner.trim() || inner }) : inline(inner, make(EMPHASIS[mark]), depth + 1);
        end = close + mark.length;
      }
    }
    if (node === null) continue;
    into.append(text.slice(done, match.index), node);
    marks.lastIndex = done = end;
  }
  into.append(text.slice(done));
  return into;
}

/** Where the mark at `at` is closed; -1: nowhere, nor is any later one; 0: it opens nothing. */
function closing(text, mark, at, start) {
  if (mark[0] !== "`" && (!/\S/.test(text[start] ?? "") || (mark[0] === "_" && WORD.test(text[at - 1] ?? "")))) return 0;
  for (let close = start; (close = text.indexOf(mark, close + 1)) !== -1;) {
    const next = text[close + mark.length] ?? "";
    if (mark[0] === "`" ? next !== "`" : /\S/.test(text[close - 1]) && !(mark[0] === "_" && WORD.test(next)) && !(mark === "*" && next === "*"))
      return mark === "**" && next === "*" ? close + 1 : close;
    while (text[close + 1] === mark[0]) close++;
  }
  return -1;
}

/** [text](address) as a link, or nothing. */
function bracketed(text, start, depth) {
  const middle = text.indexOf("](", start);
  if (middle === -1 || middle - start > 1000) return [null, start];
  let end = text.indexOf(")", middle);
  if (end !== -1 && text.slice(middle + 2, end).includes("(")) end = text.indexOf(")", end + 1);
  const label = text.slice(start, middle);
  if (end === -1 || end - middle > 2000 || /[[\n]/.test(label)) return [null, start];
  const address = text.slice(middle + 2, end).trim().split(/\s/)[0];
  return [link(address, inline(label, make("a"), depth + 1)), end + 1];
}

/** An address that is not of the web stays text. */
function link(address, node) {
  let url = null;
  try {
    url = new URL(address);
  } catch { /* no address */ }
  if (!url || !["http:", "https:"].includes(url.protocol)) return make("span", {}, ...node.childNodes);
  return Object.assign(node, { href: url.href, target: "_blank", rel: "noopener noreferrer" });
}

// --- formulas --------------------------------------------------------------------------------------

const LONGEST_FORMULA = 3000;
const CLOSES = { "\\(": "\\)", "\\[": "\\]", $: "$", $$: "$$" };

/** The end of a formula inside a line; -1: it is closed nowhere; 0: this is no formula, such as a price. */
function inlineFormulaEnd(text, mark, start) {
  const close = CLOSES[mark];
  if (mark === "$" && /[\s$]|^$/.test(text[start] ?? "")) return 0;
  for (let at = start; (at = text.indexOf(close, at)) !== -1; at += close.length) {
    if (at - start > LONGEST_FORMULA) return 0;
    if (at === start || (mark === "$" && text.slice(start, at).includes("\n"))) return 0;
    if (mark !== "$") return at + close.length;
    if (text[at - 1] === "\\") continue;
    return /\s/.test(text[at - 1]) || /[\d$]/.test(text[at + 1] ?? "") ? 0 : at + 1;
  }
  return -1;
}

/** The line behind a formula that begins at line i and takes whole lines, else 0. */
function formulaEnd(lines, i) {
  const begin = /^\s*(?:(\\\[|\$\$)|\\begin\{([a-z]+\*?)\})/.exec(lines[i]);
  if (!begin) return 0;
  const close = begin[1] ? CLOSES[begin[1]] : `\\end{${begin[2]}}`;
  const rest = lines[i].slice(begin[0].length);
  for (let end = i, length = 0; end < Math.min(lines.length, i + 100) && length < LONGEST_FORMULA; length += lines[end++].length) {
    const line = (end === i ? rest : lines[end]).trimEnd();
    if (line.endsWith(close)) return end + 1;
    if (line.includes(close)) return 0;
  }
  return 0;
}
