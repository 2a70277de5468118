package main

import (
	"bytes"
	"strings"
	"testing"
)

// B12: the columns and the look of OpenStack's client.
func TestListTable(t *testing.T) {
	got := printed(t, format{}, []string{"ID", "Name", "Description", "Status", "Size"}, []row{
		{"b2", "monday", nil, "available", int64(20)},
		{"b1", "größe 東京", "two\nlines\x1b[2J", "error", int64(3)},
	})
	want := `
+----+------------+-------------------+-----------+------+
| ID | Name       | Description       | Status    | Size |
+----+------------+-------------------+-----------+------+
| b2 | monday     | None              | available |   20 |
| b1 | größe 東京 | two\nlines\x1b[2J | error     |    3 |
+----+------------+-------------------+-----------+------+
`
	if got != fit(want) {
		t.Errorf("got\n%swant\n%s", got, fit(want))
	}
}

// fit takes the line feed off the front of an expected table.
func fit(s string) string { return strings.TrimPrefix(s, "\n") }

func printed(t *testing.T, f format, columns []string, rows []row) string {
	t.Helper()
	var b bytes.Buffer
	if err := f.list(&b, columns, rows); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestListFormats(t *testing.T) {
	columns := []string{"ID", "Name", "os-x:y"}
	rows := []row{{"1", nil, true}, {"2", `say "ä"`, int64(7)}}
	tests := []struct {
		format format
		rows   []row
		want   string
	}{
		{format{kind: "json"}, rows, "[\n  {\n    \"ID\": \"1\",\n    \"Name\": null,\n    \"os-x:y\": true\n  },\n" +
			"  {\n    \"ID\": \"2\",\n    \"Name\": \"say \\\"ä\\\"\",\n    \"os-x:y\": 7\n  }\n]\n"},
		{format{kind: "json"}, nil, "[]\n"},
		{format{kind: "yaml"}, rows, "- ID: \"1\"\n  Name: null\n  \"os-x:y\": true\n- ID: \"2\"\n  Name: \"say \\\"ä\\\"\"\n  \"os-x:y\": 7\n"},
		{format{kind: "yaml"}, nil, "[]\n"},
		{format{kind: "value"}, rows, "1 None True\n2 say \"ä\" 7\n"},
		{format{kind: "value", columns: []string{"name", "ID"}}, rows, "1 None\n2 say \"ä\"\n"},
		{format{columns: []string{"long name"}}, []row{{nil}, {nil}}, "+-----------+\n| long name |\n+-----------+\n| None      |\n| None      |\n+-----------+\n"},
		{format{}, nil, "+----+------+--------+\n| ID | Name | os-x:y |\n+----+------+--------+\n"},
	}
	for _, tt := range tests {
		columns := columns
		if len(tt.format.columns) == 1 {
			columns = tt.format.columns
		}
		if got := printed(t, tt.format, columns, tt.rows); got != tt.want {
			t.Errorf("%+v:\ngot\n%s\nwant\n%s", tt.format, got, tt.want)
		}
	}
}

// B4: rows in alphabetical order, None for what is not set, True and False.
func TestShow(t *testing.T) {
	fields := func() []field {
		return []field{
			{"size", int64(20)}, {"is_incremental", false}, {"fail_reason", nil},
			{"properties", map[string]string{"b": "2", "a": "1"}}, {"attachments", []string{}}, {"stored", byteCount(3 << 20)},
		}
	}
	tests := []struct {
		format format
		want   string
	}{
		{format{}, fit(`
+----------------+--------------+
| Field          | Value        |
+----------------+--------------+
| attachments    | []           |
| fail_reason    | None         |
| is_incremental | False        |
| properties     | a='1', b='2' |
| size           | 20           |
| stored         | 3.0 MiB      |
+----------------+--------------+
`)},
		{format{kind: "value", columns: []string{"stored", "fail_reason"}}, "None\n3145728\n"},
		{format{kind: "json", columns: []string{"properties", "attachments", "stored"}},
			"{\n  \"attachments\": [],\n  \"properties\": {\"a\":\"1\",\"b\":\"2\"},\n  \"stored\": 3145728\n}\n"},
		{format{kind: "yaml", columns: []string{"size"}}, "size: 20\n"},
	}
	for _, tt := range tests {
		var b bytes.Buffer
		if err := tt.format.show(&b, fields()); err != nil || b.String() != tt.want {
			t.Errorf("%+v: %v, got\n%swant\n%s", tt.format, err, b.String(), tt.want)
		}
	}
	err := format{columns: []string{"nope"}}.show(new(bytes.Buffer), fields())
	if err == nil || !strings.Contains(err.Error(), "attachments, fail_reason") {
		t.Errorf("unknown column: %v, want the names of those there are", err)
	}
}
