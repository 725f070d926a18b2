/* Last part of the notebook widget's module, after three.min.js and the six parts of the explorer. */
export default {render: PolicyExplorer.widget};
