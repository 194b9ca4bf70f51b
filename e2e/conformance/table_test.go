package conformance

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"meridian.dev/e2e/node"
)

// entry is a row of e2e/critest.md.
type entry struct{ area, spec, tests string }

func table(t *testing.T) []entry {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(node.Top(), "e2e/critest.md"))
	if err != nil {
		t.Fatal(err)
	}
	var rows []entry
	area := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "### "); ok {
			area = name
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), " | ")
		if area != "" && strings.HasPrefix(line, "| ") && len(cells) == 2 && !strings.HasPrefix(line, "| spec |") {
			rows = append(rows, entry{area, strings.ReplaceAll(strings.TrimSpace(cells[0]), "&#124;", "|"), strings.TrimSpace(cells[1])})
		}
	}
	return rows
}

var reference = regexp.MustCompile("`([a-z]+)\\.(Test[A-Za-z]+)`")

// TestTable wants every test that the table names to exist.
func TestTable(t *testing.T) {
	rows := table(t)
	if len(rows) != 137 {
		t.Errorf("%d rows, want critest's 137 specs", len(rows))
	}
	for _, row := range rows {
		named := reference.FindAllStringSubmatch(row.tests, -1)
		if len(named) == 0 && row.area != "NRI" {
			t.Errorf("%s: %s: no test", row.area, row.spec)
		}
		for _, name := range named {
			if !defined(name[1], name[2]) {
				t.Errorf("%s: %s: there is no %s in e2e/%s", row.area, row.spec, name[2], name[1])
			}
		}
	}
}

func defined(directory, name string) bool {
	files, _ := filepath.Glob(filepath.Join(node.Top(), "e2e", directory, "*_test.go"))
	return slices.ContainsFunc(files, func(path string) bool {
		text, _ := os.ReadFile(path)
		return strings.Contains(string(text), "\nfunc "+name+"(t *testing.T)")
	})
}

var label = regexp.MustCompile(` ?\[[^\]]*\]`)

// TestTableHasTheSpecsOfCritest asks critest itself which specs it has.
func TestTableHasTheSpecsOfCritest(t *testing.T) {
	critest, err := exec.LookPath("critest")
	if err != nil {
		t.Skip("critest is not on PATH")
	}
	path := filepath.Join(t.TempDir(), "specs.json")
	if output, err := exec.Command(critest, "-ginkgo.dry-run", "-ginkgo.json-report="+path).CombinedOutput(); err != nil {
		t.Fatalf("critest: %v: %s", err, output)
	}
	var reports []struct {
		SpecReports []struct {
			ContainerHierarchyTexts    []string
			LeafNodeType, LeafNodeText string
		}
	}
	text, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(text, &reports) != nil || len(reports) != 1 {
		t.Fatalf("report: %v", err)
	}
	rows := table(t)
	for _, spec := range reports[0].SpecReports {
		if spec.LeafNodeType != "It" || strings.HasPrefix(spec.LeafNodeText, "benchmark") {
			continue
		}
		area := strings.TrimSpace(label.ReplaceAllString(spec.ContainerHierarchyTexts[0], ""))
		leaf := strings.TrimSpace(label.ReplaceAllString(spec.LeafNodeText, ""))
		found := slices.IndexFunc(rows, func(row entry) bool { return row.area == area && strings.HasSuffix(row.spec, leaf) })
		if found < 0 {
			t.Errorf("the table lacks %s: %s", area, leaf)
			continue
		}
		rows = slices.Delete(rows, found, found+1)
	}
	for _, row := range rows {
		t.Errorf("critest has no %s: %s", row.area, row.spec)
	}
}
