package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/optimize"
	"github.com/llsteer/llsteer/testdata/demo"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// jobFlags say what is optimized: a job file, one example, or both.
type jobFlags struct {
	model           modelFlags
	prompt          []string
	src, dst        []string
	layer           string
	shared          bool
	start           string
	optimizeOptions *pflag.FlagSet // see optimize.OptionTable
}

func (p *program) optimize() *cobra.Command {
	var f jobFlags
	var out, reportPath, tracePath, precision string
	var tensors, noRecipe bool
	cmd := &cobra.Command{
		Use:   "optimize -m MODEL [JOB] -o OUT",
		Short: "find a steering by gradient descent",
		Long: `Finds the vector that, added to the residual stream at the input of a layer, makes
the "dst" completions of the examples likely and the "src" ones unlikely.

JOB is a YAML or JSON file; "demo" is that of the quickstart. Flags win over it.
Ctrl-C keeps the best that was found so far.`,
		Example: `  cat > job.yaml <<END
  layer: 2
  lr: 0.03
  max_iters: 60
  examples:
    - prompt: "When you open the program,"
      src_completions: [" the main window shows the list of your files."]
      dst_completions: [" la ventana principal muestra la lista de sus archivos."]
  END
  llsteer optimize -m demo job.yaml -o spanish.gguf --report report.json
  llsteer generate -m demo -s spanish.gguf:0.9 --compare -p "To change the size of the window,"`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: cobra.FixedCompletions([]string{"yaml", "yml", "json"}, cobra.ShellCompDirectiveFilterFileExt),
		RunE: func(cmd *cobra.Command, args []string) error {
			began := time.Now()
			if out == "" {
				return badInput("", "--out is missing")
			}
			if tensors && tracePath == "" {
				return badInput("add --trace FILE", "--trace-tensors is for --trace")
			}
			if err := checkPrecision(precision); err != nil {
				return err
			}
			job, err := p.job(cmd, &f, args)
			if err != nil {
				return err
			}
			outputs := map[string]string{"--out": out, "--report": reportPath, "--trace": tracePath}
			if err := checkOutputs(outputs, append(args, f.model.path)...); err != nil {
				return err
			}
			m, err := p.open(cmd.Context(), &f.model, false)
			if err != nil {
				return err
			}
			defer m.Close()
			trace, err := newTrace(tracePath, tensors)
			if err != nil {
				return err
			}
			defer trace.discard()

			result, err := p.find(cmd.Context(), m, job, trace)
			if err != nil {
				return err
			}
			if noRecipe {
				result.Steering.Recipe = ""
			}
			report := newReport(result, m.Info(), f.model.path, out, time.Since(began).Seconds())
			data, err := encodeJSON(report)
			if err != nil {
				return err
			}
			if err := loader.Write(out, result.Steering); err != nil {
				return err
			}
			if err := trace.commit(); err != nil {
				return err
			}
			if reportPath != "" {
				if err := writeOutput(reportPath, data); err != nil {
					return err
				}
			}
			if p.json {
				err = p.print(string(data))
			} else {
				err = p.print(summary(report))
			}
			if err == nil && result.Stop == optimize.StopInterrupted {
				p.note("llsteer: interrupted; %s holds the best that was found", out)
				err = exitStatus(exitInterrupted)
			}
			return err
		},
	}
	addFlags(cmd, "Output", func(flags *pflag.FlagSet) {
		flags.StringVarP(&out, "out", "o", "", "steering `FILE` to write (required)")
		flags.StringVar(&reportPath, "report", "", "write the result as JSON to `FILE`")
		flags.StringVar(&tracePath, "trace", "", "write a line of JSON for each step to `FILE`")
		flags.BoolVar(&tensors, "trace-tensors", false, "with the vectors and gradients in --trace")
		flags.BoolVar(&noRecipe, "no-recipe", false, "leave the job out of the steering file")
	})
	f.add(cmd)
	addFlags(cmd, "Model", func(flags *pflag.FlagSet) { addPrecision(cmd, flags, &precision, precisionF32) })
	_ = cmd.MarkFlagFilename("out", "gguf")
	return cmd
}

// add defines the flags of a job.
func (f *jobFlags) add(cmd *cobra.Command) {
	addFlags(cmd, "Example, in place of the job's (@FILE reads a file, @- standard input, @@ is an @)", func(flags *pflag.FlagSet) {
		flags.StringArrayVarP(&f.prompt, "prompt", "p", nil, "`TEXT` before the completions")
		flags.StringArrayVar(&f.src, "src", nil, "completion `TEXT` to make unlikely; repeatable")
		flags.StringArrayVar(&f.dst, "dst", nil, "completion `TEXT` to make likely; repeatable")
	})
	addFlags(cmd, "Steering", func(flags *pflag.FlagSet) {
		flags.StringVar(&f.layer, "layer", "", "`LAYERS` whose input is steered, from 0: 10, 3,7, 0-25 or all (default the job's)")
		flags.BoolVar(&f.shared, "shared", false, "one vector on all of them, in place of one each")
		flags.StringVar(&f.start, "start", "", "steering `FILE` to start from (default random)")
	})
	f.model.add(cmd)
	_ = cmd.MarkFlagFilename("start", "gguf")
}

// job is the job file with the flags over it.
func (p *program) job(cmd *cobra.Command, f *jobFlags, args []string) (*optimize.Job, error) {
	job := &optimize.Job{Options: optimize.DefaultOptions()}
	if len(args) > 0 {
		data, err := readJobFile(args[0])
		if err != nil {
			return nil, err
		}
		if job, err = optimize.ReadJob(args[0], data); err != nil {
			return nil, err
		}
	}
	return job, nil
}

// readJobFile reads a job file, or the embedded job.
func readJobFile(path string) ([]byte, error) {
	if path == demoName {
		return demo.Job, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, badInput("", "cannot read the job %s: %s", path, reason(err))
	}
	defer f.Close()
	text, err := readText(f)
	if err != nil {
		return nil, badInput("", "cannot read the job %s: %s", path, reason(err))
	}
	return []byte(text), nil
}

// find optimizes, with progress and a trace.
func (p *program) find(ctx context.Context, m *ggmlsteer.Model, job *optimize.Job, t *trace) (*optimize.Result, error) {
	progress := p.newProgress(job.MaxIters)
	result, err := optimize.Run(ctx, m, job, func(s optimize.Step) {
		progress.step(s)
		t.step(s)
	})
	progress.done()
	return result, err
}

// summary is a report for people.
func summary(r report) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: loss %.4f after %d steps (%s)\n", r.File, r.Loss, r.Iters, map[optimize.Stop]string{
		optimize.StopTarget: "target met", optimize.StopMaxIters: "step limit", optimize.StopStalled: "stalled", optimize.StopInterrupted: "interrupted",
	}[r.Stop])
	return b.String()
}

var _ = io.EOF
var _ = slices.Sort[[]int]
var _ = strconv.Itoa
