"""An answer with everything that the chat page knows of Markdown."""

MARKDOWN = """# Pumps

A **heat pump** moves *heat*, `not` air; snake_case_name stays, ***both*** too; *out **in** out*.
See [the page](https://example.org/a_(b)) or https://example.org/x.

1. First
   - inner **one**
   - inner two

   ```python
   print("<b>hi</b>")
   ```
2. Second

> quoted
> > twice

| a | b |
|---|:-:|
| 1 | `x` |

---
~~gone~~ 2 * 3 * 4 \\*kept\\*"""

FORMULAS = r"""Let \(a_1 \le \frac{b^2}{2}\) and $\sqrt[3]{x}$, at $5 or $6, not \*bold\* but \,x.

\[
\sum_{i=1}^{n} x_i \, = \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
- \left( \int_0^\infty e^{-x} \, dx \right)
\]

$$E = mc^2$$

So $\unknown{x} * y * z$ stays, as does \(an open one * and * more"""
