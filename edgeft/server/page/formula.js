"use strict";
// A formula in LaTeX as MathML. What is not known here is shown as it was written.

const words = (text) => Object.fromEntries(text.split(" ").map((pair) => pair.split(":")));
const IDENTIFIERS = words("alpha:α beta:β gamma:γ delta:δ epsilon:ϵ varepsilon:ε zeta:ζ eta:η theta:θ vartheta:ϑ iota:ι kappa:κ lambda:λ mu:μ nu:ν xi:ξ pi:π rho:ρ sigma:σ tau:τ " +
  "upsilon:υ phi:ϕ varphi:φ chi:χ psi:ψ omega:ω Gamma:Γ Delta:Δ Theta:Θ Lambda:Λ Xi:Ξ Pi:Π Sigma:Σ Upsilon:Υ Phi:Φ Psi:Ψ Omega:Ω infty:∞ partial:∂ nabla:∇ hbar:ℏ ell:ℓ emptyset:∅ " +
  "varnothing:∅ Re:ℜ Im:ℑ aleph:ℵ degree:° angle:∠ ldots:… dots:… cdots:⋯ vdots:⋮ ddots:⋱ top:⊤ bot:⊥");
const OPERATORS = words("cdot:⋅ times:× div:÷ pm:± mp:∓ ast:∗ star:⋆ circ:∘ bullet:∙ oplus:⊕ otimes:⊗ leq:≤ le:≤ geq:≥ ge:≥ neq:≠ ne:≠ ll:≪ gg:≫ approx:≈ equiv:≡ sim:∼ simeq:≃ cong:≅ " +
  "propto:∝ in:∈ notin:∉ ni:∋ subset:⊂ subseteq:⊆ supset:⊃ supseteq:⊇ cup:∪ cap:∩ setminus:∖ land:∧ wedge:∧ lor:∨ vee:∨ neg:¬ lnot:¬ forall:∀ exists:∃ to:→ rightarrow:→ " +
  "leftarrow:← leftrightarrow:↔ longrightarrow:⟶ Rightarrow:⇒ Leftarrow:⇐ Leftrightarrow:⇔ implies:⟹ iff:⟺ mapsto:↦ uparrow:↑ downarrow:↓ mid:∣ parallel:∥ perp:⊥ langle:⟨ rangle:⟩ " +
  "lfloor:⌊ rfloor:⌋ lceil:⌈ rceil:⌉ vert:| Vert:‖ therefore:∴ because:∵ prime:′ {:{ }:} |:‖ %:% #:# &:& $:$ _:_ backslash:\\");
OPERATORS.colon = ":";
const LARGE = words("sum:∑ prod:∏ coprod:∐ bigcup:⋃ bigcap:⋂ bigoplus:⨁ bigotimes:⨂ lim:lim max:max min:min sup:sup inf:inf argmax:arg\u202fmax argmin:arg\u202fmin limsup:lim\u202fsup liminf:lim\u202finf");
const INTEGRALS = words("int:∫ iint:∬ iiint:∭ oint:∮");
const FUNCTIONS = new Set("sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan log ln lg exp det dim ker deg gcd Pr arg mod".split(" "));
const ACCENTS = words("hat:^ widehat:^ bar:¯ overline:¯ vec:→ tilde:~ widetilde:~ dot:˙ ddot:¨ overbrace:⏞ underbrace:⏟ underline:_");
const SPACES = { ",": ".17em", ":": ".22em", ";": ".28em", "!": "-.17em", " ": ".25em", quad: "1em", qquad: "2em" };
const FENCES = { matrix: "", pmatrix: "()", bmatrix: "[]", Bmatrix: "{}", vmatrix: "||", Vmatrix: "‖‖", cases: "{", aligned: "", align: "", "align*": "", alignedat: "", split: "", gathered: "", gather: "", "gather*": "", equation: "", "equation*": "", array: "" };
const DOUBLE = { C: "ℂ", H: "ℍ", N: "ℕ", P: "ℙ", Q: "ℚ", R: "ℝ", Z: "ℤ" };
const IGNORED = new Set("displaystyle textstyle limits nolimits big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr nonumber notag".split(" "));

const mathml = (tag, ...children) => {
  const node = document.createElementNS("http://www.w3.org/1998/Math/MathML", tag);
  node.append(...children);
  return node;
};
const operator = (text, attributes = {}) => {
  const node = mathml("mo", text);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
};

function formula(source) {
  const [, open, inner] = /^(\\\(|\\\[|\$\$?)([^]*)(?:\\\)|\\\]|\$)$/.exec(source) ?? [null, "", source];
  try {
    const parser = new Formula(open === "$$" ? inner.slice(0, -1) : inner);
    const node = mathml("math", parser.row());
    if (parser.peek() !== undefined) throw new SyntaxError(parser.peek());
    if (!["$", "\\("].includes(open)) node.setAttribute("display", "block");
    return make("span", { className: "math", title: source }, node);
  } catch {
    return make("code", { className: "tex", textContent: source });
  }
}

class Formula {
  constructor(text) {
    this.tokens = text.match(/\\(?:[a-zA-Z]+|[^])|\d+(?:\.\d+)?|\s+|[^]/gu) ?? [];
    this.at = 0;
    this.depth = 0;
  }

  peek() {
    while (/^\s/.test(this.tokens[this.at] ?? "")) this.at++;
    return this.tokens[this.at];
  }

  next() {
    const token = this.peek();
    this.at++;
    if (token === undefined) throw new SyntaxError("it ends too early");
    return token;
  }

  expect(token) {
    if (this.next() !== token) throw new SyntaxError(`${token} is missing`);
  }

  row(ends = []) {
    if (++this.depth > 30) throw new SyntaxError("too deep");
    const found = mathml("mrow");
    for (let token; (token = this.peek()) !== undefined && ![...ends, "}", "&", "\\\\", "\\right", "\\end"].includes(token);) found.append(this.scripted());
    this.depth--;
    return found;
  }

  /** What stands between braces, else one atom. */
  argument() {
    if (this.peek() !== "{") return this.atom();
    this.next();
    const found = this.row();
    this.expect("}");
    return found;
  }

  words() {
    this.expect("{");
    const start = this.at;
    while (this.tokens[this.at] !== "}") if (this.at++ > this.tokens.length) throw new SyntaxError("} is missing");
    return this.tokens.slice(start, this.at++).join("").replaceAll("\\", "");
  }

  scripted() {
    const limits = this.peek()[0] === "\\" && (Object.hasOwn(LARGE, this.peek().slice(1)) || this.peek().endsWith("brace"));
    const base = this.atom();
    let below = null;
    let above = null;
    for (let token; ["^", "_", "'"].includes((token = this.peek()));) {
      this.next();
      if (token === "_") below = this.argument();
      else if (token === "^") above = mathml("mrow", ...(above ? [above] : []), this.argument());
      else above = mathml("mrow", ...(above ? [above] : []), operator("′"));
    }
    const [under, over] = limits ? ["under", "over"] : ["sub", "sup"];
    if (below && above) return mathml(`m${under}${over}`, base, below, above);
    return below ? mathml(`m${under}`, base, below) : above ? mathml(`m${over}`, base, above) : base;
  }

  atom() {
    const token = this.next();
    if (token === "{") return this.at--, this.argument();
    if (token[0] === "\\") return this.command(token.slice(1));
    if (/^\d/.test(token)) return mathml("mn", token);
    if (/^\p{L}/u.test(token)) return mathml("mi", token);
    if ("^_}&%#$~".includes(token)) throw new SyntaxError(token);
    return operator(token === "-" ? "−" : token === "*" ? "∗" : token, "()[]|/".includes(token) ? { stretchy: "false" } : {});
  }

  command(name) {
    if (Object.hasOwn(IDENTIFIERS, name)) return mathml("mi", IDENTIFIERS[name]);
    if (Object.hasOwn(OPERATORS, name)) return operator(OPERATORS[name]);
    if (Object.hasOwn(LARGE, name)) return operator(LARGE[name], { movablelimits: "true" });
    if (Object.hasOwn(INTEGRALS, name)) return operator(INTEGRALS[name]);
    if (FUNCTIONS.has(name)) return mathml("mrow", mathml("mi", name), operator("\u2061"));
    if (IGNORED.has(name)) return mathml("mrow");
    if (Object.hasOwn(SPACES, name)) return this.space(SPACES[name]);
    if (Object.hasOwn(ACCENTS, name)) return mathml(name.startsWith("under") ? "munder" : "mover", this.argument(), operator(ACCENTS[name]));
    switch (name) {
      case "frac": case "dfrac": case "tfrac": return mathml("mfrac", this.argument(), this.argument());
      case "binom": return mathml("mrow", operator("("), this.bare(mathml("mfrac", this.argument(), this.argument())), operator(")"));
      case "sqrt": return this.root();
      case "text": case "textbf": case "textit": case "textrm": case "mathrm": case "mbox": case "operatorname": return mathml("mtext", this.words());
      case "mathbb": return mathml("mi", this.words().replace(/[A-Z]/g, (letter) => DOUBLE[letter] ?? String.fromCodePoint(0x1d538 + letter.charCodeAt(0) - 65)));
      case "mathbf": return mathml("mi", this.words().replace(/[A-Za-z]/g, (letter) => String.fromCodePoint(letter < "a" ? 0x1d400 + letter.charCodeAt(0) - 65 : 0x1d41a + letter.charCodeAt(0) - 97)));
      case "mathcal": case "mathit": case "boldsymbol": case "bm": case "boxed": return this.argument();
      case "tag": return mathml("mtext", `\u2003(${this.words()})`);
      case "left": return this.fenced();
      case "begin": return this.environment(this.words());
      default: throw new SyntaxError(name);
    }
  }

  space(width) {
    const node = mathml("mspace");
    node.setAttribute("width", width);
    return node;
  }

  bare(fraction) {
    fraction.setAttribute("linethickness", "0");
    return fraction;
  }

  root() {
    if (this.peek() !== "[") return mathml("msqrt", this.argument());
    this.next();
    const index = this.row(["]"]);
    this.expect("]");
    return mathml("mroot", this.argument(), index);
  }

  fence() {
    const token = this.next();
    if (token === ".") return "";
    return token[0] === "\\" ? OPERATORS[token.slice(1)] ?? "" : token;
  }

  fenced() {
    const open = this.fence();
    const inner = this.row();
    this.expect("\\right");
    return mathml("mrow", operator(open, { stretchy: "true" }), inner, operator(this.fence(), { stretchy: "true" }));
  }

  environment(name) {
    if (!Object.hasOwn(FENCES, name)) throw new SyntaxError(name);
    if (name === "array" || name === "alignedat") this.words();
    const rows = mathml("mtable");
    for (let token; (token = this.peek()) !== "\\end";) {
      if (token === undefined || token === "}" || token === "\\right") throw new SyntaxError(name);
      const row = mathml("mtr");
      do {
        if (this.peek() === "&") this.next();
        row.append(mathml("mtd", this.row()));
      } while (this.peek() === "&");
      rows.append(row);
      if (this.peek() === "\\\\") this.next();
    }
    this.next();
    if (this.words() !== name) throw new SyntaxError(name);
    if (name.startsWith("align") || name === "split" || name === "cases") rows.classList.add("aligned");
    const [open, close] = FENCES[name];
    return open ? mathml("mrow", operator(open, { stretchy: "true" }), rows, operator(close ?? "", { stretchy: "true" })) : rows;
  }
}
