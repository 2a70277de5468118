package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A row is one line of a list; its cells stand in the order of the columns. A
// cell is nil (shown as None), a string, a bool, an int64, a
// byteCount, a byteRate, a list or a map of strings.
type row []any

// A field is one line of what show prints.
type field struct {
	name  string
	value any
}

// A format is one of outputFormats; columns, if any, are the ones to print, in
// the order of the output's own columns.
type format struct {
	kind    string
	columns []string
}

// A byteCount is a size in bytes, which tables show with a unit.
type byteCount int64

// A byteRate is bytes a second, which tables show with a unit.
type byteRate int64

var outputFormats = []string{"table", "json", "value", "yaml"}

// list prints rows under their columns.
func (f format) list(w io.Writer, columns []string, rows []row) error {
	picked, err := f.pick(columns)
	if err != nil {
		return err
	}
	names := make([]string, len(picked))
	for i, p := range picked {
		names[i] = columns[p]
	}
	cut := make([]row, len(rows))
	for i, r := range rows {
		for _, p := range picked {
			cut[i] = append(cut[i], r[p])
		}
	}
	switch f.kind {
	case "json":
		return printJSONRows(w, names, cut)
	case "yaml":
		return printYAMLRows(w, names, cut)
	case "value":
		return printValueRows(w, cut)
	}
	return printTable(w, names, cut)
}

// show prints one object: its fields in alphabetical order, except in value
// format, which follows the columns that were asked for.
func (f format) show(w io.Writer, fields []field) error {
	slices.SortStableFunc(fields, func(a, b field) int { return strings.Compare(a.name, b.name) })
	names := make([]string, len(fields))
	for i, fl := range fields {
		names[i] = fl.name
	}
	picked, err := f.pick(names)
	if err != nil {
		return err
	}
	kept := make([]field, len(picked))
	for i, p := range picked {
		kept[i] = fields[p]
	}
	switch f.kind {
	case "json":
		return printJSONObject(w, kept)
	case "yaml":
		for _, fl := range kept {
			if _, err := fmt.Fprintf(w, "%s: %s\n", yamlKey(fl.name), jsonText(fl.value)); err != nil {
				return err
			}
		}
		return nil
	case "value":
		for _, fl := range kept {
			if _, err := fmt.Fprintln(w, cellText(fl.value)); err != nil {
				return err
			}
		}
		return nil
	}
	rows := make([]row, len(kept))
	for i, fl := range kept {
		rows[i] = row{fl.name, tableText(fl.value)}
	}
	return printTable(w, []string{"Field", "Value"}, rows)
}

// pick returns the indexes of the columns to print. Case does not matter.
func (f format) pick(columns []string) ([]int, error) {
	var picked []int
	if len(f.columns) == 0 {
		for i := range columns {
			picked = append(picked, i)
		}
		return picked, nil
	}
	for _, want := range f.columns {
		i := slices.IndexFunc(columns, func(c string) bool { return strings.EqualFold(c, want) })
		if i < 0 {
			return nil, usagef("unknown column %q: there are %s", want, strings.Join(columns, ", "))
		}
		picked = append(picked, i)
	}
	slices.Sort(picked)
	return slices.Compact(picked), nil
}

// cellText is a value as tables and value format show it.
func cellText(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case string:
		return printable(v)
	case bool:
		if v {
			return "True"
		}
		return "False"
	case int64:
		return strconv.FormatInt(v, 10)
	case byteCount:
		return strconv.FormatInt(int64(v), 10)
	case []string:
		if len(v) == 0 {
			return "[]"
		}
		return printable(strings.Join(v, ", "))
	case map[string]string:
		var pairs []string
		for _, k := range slices.Sorted(maps.Keys(v)) {
			pairs = append(pairs, fmt.Sprintf("%s='%s'", printable(k), printable(v[k])))
		}
		return strings.Join(pairs, ", ")
	}
	return printable(fmt.Sprint(v))
}

// tableText is a value as tables show it.
func tableText(v any) string {
	switch n := v.(type) {
	case byteCount:
		return formatBytes(int64(n))
	case byteRate:
		return formatBytes(int64(n)) + "/s"
	}
	return cellText(v)
}

// printable escapes what would break a table or a terminal: names and
// descriptions are other people's text.
func printable(s string) string {
	clean := func(r rune) bool { return r != utf8.RuneError && unicode.IsPrint(r) }
	if strings.IndexFunc(s, func(r rune) bool { return !clean(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if clean(r) {
			b.WriteRune(r)
		} else {
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		}
	}
	return b.String()
}

// printTable draws a table as OpenStack's client does: numbers to the right,
// all else to the left.
func printTable(w io.Writer, columns []string, rows []row) error {
	widths := make([]int, len(columns))
	right := make([]bool, len(columns)) // a column with numbers and nothing else but None
	left := make([]bool, len(columns))
	cells := make([][]string, len(rows))
	for i, c := range columns {
		widths[i] = textWidth(c)
	}
	for i, r := range rows {
		cells[i] = make([]string, len(columns))
		for j, v := range r {
			cells[i][j] = tableText(v)
			widths[j] = max(widths[j], textWidth(cells[i][j]))
			switch v.(type) {
			case int64, byteCount:
				right[j] = true
			case nil:
			default:
				left[j] = true
			}
		}
	}
	var b bytes.Buffer
	border := func() {
		for _, n := range widths {
			b.WriteString("+" + strings.Repeat("-", n+2))
		}
		b.WriteString("+\n")
	}
	line := func(cells []string) {
		for j, c := range cells {
			pad := strings.Repeat(" ", widths[j]-textWidth(c))
			if right[j] && !left[j] {
				b.WriteString("| " + pad + c + " ")
			} else {
				b.WriteString("| " + c + pad + " ")
			}
		}
		b.WriteString("|\n")
	}
	border()
	line(columns)
	border()
	for _, c := range cells {
		line(c)
	}
	if len(cells) > 0 {
		border()
	}
	_, err := w.Write(b.Bytes())
	return err
}

// textWidth is the number of columns that s takes on a terminal.
func textWidth(s string) int {
	n := 0
	for _, r := range s {
		switch {
		case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		case unicode.In(r, unicode.Han, unicode.Hangul, unicode.Hiragana, unicode.Katakana),
			r >= 0xff01 && r <= 0xff60, r >= 0x1f300 && r <= 0x1faff:
			n += 2
		default:
			n++
		}
	}
	return n
}

func printValueRows(w io.Writer, rows []row) error {
	for _, r := range rows {
		texts := make([]string, len(r))
		for i, v := range r {
			texts[i] = cellText(v)
		}
		if _, err := fmt.Fprintln(w, strings.Join(texts, " ")); err != nil {
			return err
		}
	}
	return nil
}

func printJSONRows(w io.Writer, columns []string, rows []row) error {
	var b bytes.Buffer
	b.WriteString("[")
	for i, r := range rows {
		if i > 0 {
			b.WriteString(",")
		}
		b.WriteString("\n  {")
		for j, v := range r {
			if j > 0 {
				b.WriteString(",")
			}
			fmt.Fprintf(&b, "\n    %s: %s", jsonText(columns[j]), jsonText(v))
		}
		b.WriteString("\n  }")
	}
	if len(rows) > 0 {
		b.WriteString("\n")
	}
	b.WriteString("]\n")
	_, err := w.Write(b.Bytes())
	return err
}

func printJSONObject(w io.Writer, fields []field) error {
	var b bytes.Buffer
	b.WriteString("{")
	for i, f := range fields {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, "\n  %s: %s", jsonText(f.name), jsonText(f.value))
	}
	b.WriteString("\n}\n")
	_, err := w.Write(b.Bytes())
	return err
}

func printYAMLRows(w io.Writer, columns []string, rows []row) error {
	if len(rows) == 0 {
		_, err := io.WriteString(w, "[]\n")
		return err
	}
	for _, r := range rows {
		for j, v := range r {
			lead := "  "
			if j == 0 {
				lead = "- "
			}
			if _, err := fmt.Fprintf(w, "%s%s: %s\n", lead, yamlKey(columns[j]), jsonText(v)); err != nil {
				return err
			}
		}
	}
	return nil
}

// yamlKey quotes the keys that need it. Values are JSON, which YAML 1.2 reads
// as it is.
func yamlKey(s string) string {
	if strings.ContainsAny(s, ":#") {
		return jsonText(s)
	}
	return s
}

// jsonText is v as JSON on one line, with lists and maps never null.
func jsonText(v any) string {
	switch list := v.(type) {
	case []string:
		if list == nil {
			v = []string{}
		}
	case map[string]string:
		if list == nil {
			v = map[string]string{}
		}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic("varve: a cell that has no JSON: " + err.Error())
	}
	return strings.TrimSuffix(b.String(), "\n")
}
