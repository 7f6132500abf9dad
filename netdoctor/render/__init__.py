"""Reports as text: terminal, HTML, JSON, Markdown, JUnit, SARIF. Knows nothing of capture or checks."""
