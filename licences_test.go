package llsteer

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// licenceSays is what a licence's text has and the others have not.
var licenceSays = map[string]string{
	"MIT":          "Permission is hereby granted, free of charge",
	"BSD-3-Clause": "Redistribution and use in source and binary forms",
	"Apache-2.0":   "Apache License",
	"CC-BY-4.0":    "Creative Commons Attribution 4.0",
	"FTL":          "The FreeType License",
}

// LICENSES.md lists every module of go.mod, says rightly which of them the program
// links, and agrees with the modules' own licence files.
func TestLicences(t *testing.T) {
	table, err := os.ReadFile("LICENSES.md")
	require.NoError(t, err)
	type module struct{ copyright, licence, use string }
	listed := map[string]module{}
	row := regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (.*) ?\\| (.+) \\| (program|sources|tests|Windows) \\|$")
	for _, m := range row.FindAllStringSubmatch(string(table), -1) {
		listed[m[1]] = module{strings.TrimSpace(m[2]), m[3], m[4]}
	}

	var mod struct{ Require []struct{ Path string } }
	require.NoError(t, json.Unmarshal(goCommand(t, "mod", "edit", "-json"), &mod))
	require.NotEmpty(t, mod.Require)
	required := map[string]bool{}
	for _, m := range mod.Require {
		required[m.Path] = true
		require.Contains(t, listed, m.Path, "go.mod has a module whose licence is not in LICENSES.md")
	}

	linked := strings.Fields(string(goCommand(t, "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}", "./cmd/llsteer")))
	for path, m := range listed {
		require.True(t, required[path], "LICENSES.md has %s, and go.mod has not", path)
		require.Equal(t, slices.Contains(linked, path), m.use == "program", "is %s linked into the program?", path)
		require.Contains(t, licenceSays, m.licence, path)

		folder := strings.TrimSpace(string(goCommand(t, "list", "-m", "-f", "{{.Dir}}", path)))
		if folder == "" { // not needed on this machine, and not there
			continue
		}
		files, err := filepath.Glob(filepath.Join(folder, "LICENSE*"))
		require.NoError(t, err)
		require.NotEmpty(t, files, path)
		text, err := os.ReadFile(files[0])
		require.NoError(t, err)
		require.Contains(t, string(text), licenceSays[m.licence], path)
		require.Contains(t, string(text), m.copyright, path)
	}
}

func goCommand(t *testing.T, args ...string) []byte {
	command := exec.Command("go", args...)
	command.Stderr = os.Stderr
	out, err := command.Output()
	require.NoError(t, err, "go %s", strings.Join(args, " "))
	return out
}
