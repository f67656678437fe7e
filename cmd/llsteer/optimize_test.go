package main

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/llsteer/llsteer/optimize"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
)

// Every option is a flag, with dashes and the option's own default, and what it is
// given comes out as it does of a job file; options that are not given stay the job's.
func TestEveryOptionIsAFlag(t *testing.T) {
	values := map[string]string{"number": "0.625", "count": "3"}
	for _, o := range optimize.OptionTable() {
		t.Run(o.Name, func(t *testing.T) {
			value := values[o.Type]
			switch o.Type {
			case "bool":
				value = map[string]string{"true": "false", "false": "true"}[o.Default]
			case "choice":
				value = o.Choices[len(o.Choices)-1]
			}
			require.NotEqual(t, o.Default, value)
			want, err := optimize.ReadJob("job", []byte("layer: 2\n"+o.Name+": "+value))
			require.NoError(t, err)
			require.Equal(t, want, jobOf(t, "--"+flagOf(o)+"="+value))
			require.Equal(t, o.Default, command().Flag(flagOf(o)).DefValue)
			if o.Type == "bool" && value == "true" {
				require.Equal(t, want, jobOf(t, "--"+flagOf(o)))
			}
		})
	}
}

// optimize --help lists every option with its name in the formulas and its default, and the
// formulas do have that name.
func TestHelpHasEveryOption(t *testing.T) {
	root := (&program{}).root()
	var help bytes.Buffer
	root.SetOut(&help)
	root.SetArgs([]string{"optimize", "--help"})
	require.NoError(t, root.Execute())
	entries := map[string]string{} // by flag, on one line
	for _, entry := range regexp.MustCompile(`(?m)^ +(?:-., )?--`).Split(help.String(), -1)[1:] {
		words := strings.Fields(entry)
		entries[words[0]] = strings.Join(words, " ")
	}
	formulas, err := os.ReadFile("../../docs/steering.md")
	require.NoError(t, err)
	for _, o := range optimize.OptionTable() {
		entry, name := entries[flagOf(o)], o.FormulaName()
		if o.Name == "seed" { // a flag of every command
			require.Contains(t, entry, "(default "+o.Default+")")
		} else {
			require.Contains(t, entry, "("+name+", default "+o.Default+")", o.Name)
			require.Contains(t, entry, o.Help)
		}
		require.True(t, regexp.MustCompile(`(^|[^\pL_])`+regexp.QuoteMeta(name)+`($|[^\pL_])`).Match(formulas), "%s is not in the formulas", name)
	}
}

// command has the flags of optimize.
func command() *cobra.Command { return (&program{}).optimize() }

// jobOf is the job of optimize --layer 2 with more flags.
func jobOf(t *testing.T, args ...string) *optimize.Job {
	t.Helper()
	var f jobFlags
	cmd := &cobra.Command{}
	f.add(cmd)
	addFlags(cmd, "Options", addOptions)
	f.model.add(cmd)
	require.NoError(t, cmd.ParseFlags(append([]string{"--layer", "2"}, args...)))
	p := &program{}
	job, err := p.job(cmd, &f, nil)
	require.NoError(t, err)
	return job
}
