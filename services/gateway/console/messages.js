// A sentence for each error code of docs/wire.md, and for the page's own.

const MESSAGES = {
  bad_image: "An image cannot be read.",
  image_too_large: "An image is too large for this service.",
  missing_input: "The scorer needs an input that is missing.",
  invalid_item: "The scorer cannot use this input.",
  no_reference_face: "A reference image shows no face.",
  scorer_failed: "The scorer failed on this image.",
  non_finite: "The scorer did not return a finite number.",
  judge_budget: "The judge has used up its budget.",
  replica_lost: "The scorer's process died. Try again.",
  unavailable: "The scorer is temporarily unavailable. Try again.",
  overloaded: "The service is busy. Try again.",
  deadline_exceeded: "The request took too long. Try again.",
  internal: "The service failed.",
  invalid_request: "The request is not valid.",
  unknown_scorer: "The service does not have this scorer or reward.",
  payload_too_large: "The request is too large for this service.",
  unsupported_media_type: "The service does not accept this content type.",
  unauthenticated: "The service needs a valid token.",
  permission_denied: "This token does not permit the request.",
  unknown_image: "The service no longer stores an image.",
  network: "The service does not answer.",
  cut_off: "The answer is incomplete.",
  stopped: "Stopped.",
  unreadable_file: "A selected file cannot be read.",
};

export const describe = (code) => MESSAGES[code] ?? "The service refused the request.";
