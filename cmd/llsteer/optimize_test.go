package main

import (
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
