package egress

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
)

// forTerminal returns text as it is, or quoted where a terminal would obey it, or go on
// in another line or cell. It may come from an authorization server or a config.
func forTerminal(text string) string {
	if strings.ContainsFunc(text, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return strconv.Quote(text)
	}
	return text
}

// writeRow writes the cells of a row to the writer of a table.
func writeRow(table io.Writer, cells ...string) {
	for i, cell := range cells {
		cells[i] = forTerminal(cell)
	}
	fmt.Fprintln(table, strings.Join(cells, "\t"))
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
