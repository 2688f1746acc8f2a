/** The page in a notebook's cell, in a frame of its own: what is chosen there is told to Python. */

const FORMAT = "persona-circuits/selection";

function render({ model, el }) {
  const frame = document.createElement("iframe");
  frame.setAttribute("sandbox", "allow-scripts allow-downloads allow-modals");
  frame.style.cssText = "width: 100%; height: 900px; border: 0";
  frame.title = model.get("title");
  const hear = ({ source, data }) => {
    if (source !== frame.contentWindow || data?.format !== FORMAT) return;
    for (const key of ["pins", "edges", "size", "groups"]) model.set(key, data[key]);
    model.save_changes();
  };
  window.addEventListener("message", hear);
  frame.srcdoc = model.get("html");
  el.append(frame);
  return () => window.removeEventListener("message", hear);
}

export default { render };
