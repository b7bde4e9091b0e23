// Package grafana holds the dashboard of deploy/grafana against the types that Grafana makes from its own schemas.
package grafana

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/variants"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/statetimeline"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

// read takes the dashboard as Grafana's own types do, which know no other field, and checks its values. What was read strictly has lost its
// panels (see found), so it is read twice.
func read(text []byte) (board dashboard.Dashboard, err error) {
	if err = found(new(dashboard.Dashboard).UnmarshalJSONStrict(text)); err == nil {
		err = json.Unmarshal(text, &board)
	}
	if err == nil {
		err = found(board.Validate())
	}
	return board, err
}

// found is nil for an empty list of faults, which is no nil error.
func found(err error) error {
	if faults, ok := err.(cog.BuildErrors); ok && len(faults) == 0 {
		return nil
	}
	return err
}

func TestTheDashboardIsOne(t *testing.T) {
	known := map[string]bool{"row": true}
	for _, panel := range []variants.PanelcfgConfig{stat.VariantConfig(), statetimeline.VariantConfig(), table.VariantConfig(), timeseries.VariantConfig()} {
		known[panel.Identifier] = true
		cog.NewRuntime().RegisterPanelcfgVariant(panel)
	}
	cog.NewRuntime().RegisterDataqueryVariant(prometheus.VariantConfig())
	text, err := os.ReadFile("../../../deploy/grafana/guardraild.json")
	if err != nil {
		t.Fatal(err)
	}
	board, err := read(text)
	if err != nil {
		t.Fatal(err)
	}
	ids := map[uint32]bool{}
	for _, each := range board.Panels {
		if each.Panel == nil {
			continue
		}
		if !known[each.Panel.Type] {
			t.Errorf("%s: nobody holds a panel of type %s against its schema", *each.Panel.Title, each.Panel.Type)
		}
		if ids[*each.Panel.Id] {
			t.Errorf("two panels have the id %d", *each.Panel.Id)
		}
		ids[*each.Panel.Id] = true
	}
	if len(ids) < 20 {
		t.Errorf("only %d panels were looked at", len(ids))
	}
	for _, wrong := range [][2]string{{`"graphTooltip"`, `"graphToolTip"`}, {`"colorMode": "`, `"colourMode": "`}, {`"expr"`, `"query_text"`}} {
		if _, err := read(bytes.Replace(text, []byte(wrong[0]), []byte(wrong[1]), 1)); err == nil || !bytes.Contains(text, []byte(wrong[0])) {
			t.Errorf("%s would not be noticed", wrong[1])
		}
	}
}
